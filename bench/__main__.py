"""``make bench``: the figures of docs/performance.md, beside their bounds, from RTL counters."""

import argparse

from rich.console import Console

from . import (
    accuracy,
    chains,
    codec,
    gemm,
    layers,
    memory,
    pipeline,
    speed,
    stability,
    staleness,
    step,
    utilisation,
)


#: Name -> what it measures; each has ``run(console)``.
BENCHES = {"gemm": gemm, "step": step, "pipeline": pipeline, "utilisation": utilisation,
           "stability": stability, "staleness": staleness, "codec": codec, "memory": memory,
           "chains": chains, "layers": layers, "speed": speed, "accuracy": accuracy}


def main():
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(BENCHES)}; all by default")
    names = parser.parse_args().names or list(BENCHES)
    unknown = set(names) - set(BENCHES)
    if unknown:
        parser.error(f"there is no bench {', '.join(sorted(unknown))}: "
                     f"choose among {', '.join(BENCHES)}")
    console = Console(width=100)
    for name in names:
        console.rule(f"{name}: {BENCHES[name].__doc__.splitlines()[0]}")
        BENCHES[name].run(console)


if __name__ == "__main__":
    main()
