"""``gradmill train --resume``: a run goes on as its checkpoint says, or not at all."""

from ..checkpoint import CheckpointError, read_checkpoint
from ..nn import Sequential
from ..stash import describe_policy
from ..training_state import check_same_data, identity, last_epoch


__all__ = ["check_options", "given_options", "state_of"]

_SAME = ("virtual_minibatch", "sub_minibatch", "level1", "rounding", "seed", "predict_weights")
_OPTIMIZER = ("lr", "momentum", "decay")
_STASH = ("stash", "stash_rounding", "stash_interval")


def given_options(context):
    """Options that are on the command line, by name."""
    return {name: value for name, value in context.params.items()
            if context.get_parameter_source(name).name == "COMMANDLINE"}


def state_of(folder):
    """What the checkpoint in ``folder`` says."""
    path = folder / "checkpoint"
    if not path.exists() and not path.with_name("checkpoint.previous").exists():
        raise CheckpointError(f"{path} does not exist: give the folder of the run with --out, or "
                              "leave --resume out to begin one")
    return read_checkpoint(path)[1]


def check_options(state, given, job, config, policy):
    """Refuse options that contradict a checkpoint; returns the epoch at which the run ends.

    Parameters
    ----------
    state : dict
        Of the checkpoint.
    given : dict
        By :func:`given_options`.
    job : Task
        With the network that the options describe.
    config : Config
        Of the device.
    policy : Stash, AdaptiveStash, AutoStash or None
        That the options describe.
    """
    kept = {name: state[name] for name in _SAME} | {
        name: state["optimizer"][name] for name in _OPTIMIZER}
    for name in kept:
        if name in given:
            _same(_option(name), kept[name], given[name])
    _same("--n", state["numbers"]["n"], config.n)
    network = Sequential.from_description(state["model"])
    if "hidden" in given:
        _same("network", _widths(network), _widths(job.model))
    _same("inputs and outputs", f"{network.inputs}-{network.outputs}",
          f"{job.model.inputs}-{job.model.outputs}")
    if given.keys() & {*_STASH}:
        _same("--stash", state["stash"], describe_policy(policy))
    check_same_data(state.get("data"), identity(job.x, job.y, shuffle=True))
    return last_epoch(state["target"], given.get("epochs"))


def _same(what, kept, given):
    if kept != given:
        raise CheckpointError(f"{what}: the checkpoint has {kept}, you gave {given}; resume "
                              "without it, or begin another run in another --out")


def _option(name):
    return f"--{name.replace('_', '-')}"


def _widths(model):
    return "-".join(map(str, (model.inputs, *(stage.linear.outputs for stage in model.stages))))
