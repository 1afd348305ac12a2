"""How hidden activations are kept from forward to the weight gradient."""

from dataclasses import asdict, dataclass

from gradmill_hw.config import ConfigError
from gradmill_hw.stash.formats import Format
from gradmill_hw.stash.tables import Table, all_tables, slot_of


__all__ = ["Stash", "as_format", "check_rounding", "name_table"]

_ROUNDING = ("nearest", "stochastic")


@dataclass(frozen=True, init=False)
class Stash:
    """Activations leave the chip in a stash format and come back before they are used again.

    Forward goes on with the values as they are: only the stored copy is narrowed, from which the
    weight gradient is made. A ReLU's signs stay on chip, exactly.

    >>> gm.Stash("mask+bfp", bits=3, block=64)
    >>> gm.Stash("bfp(4)/64", layers={2: "mx9", 3: None})

    Parameters
    ----------
    format : str or Format, optional
        Of the inputs of all ``Linear`` layers but the first; as for :func:`gradmill.codec.encode`.
        ``None``: only those in ``layers``.
    layers : dict, optional
        Number of a ``Linear`` (the second one is 1) -> format of its input, ``None`` to keep it on
        chip as it is.
    rounding : str
        ``"nearest"`` or ``"stochastic"``, keyed by seed, virtual minibatch, layer and
        sub-minibatch.
    draw : bool
        Whether values of ``nonuniform`` are drawn at random from their bins when they come back.
    tables : dict of str to Table, optional
        Tables of ``nonuniform`` in place of the presets ``lite``, ``normal``, ``aggressive``.
    parameters
        ``bits``, ``block``, ``outliers``, ``table``, ``pack`` of the format; ``table`` may be a
        Table itself, as of :func:`gradmill.codec.fit_table`.
    """

    format:   Format | None
    layers:   tuple
    rounding: str
    draw:     bool
    tables:   tuple

    def __init__(self, format=None, *, layers=None, rounding="nearest", draw=False, tables=(),
                 **parameters):
        check_rounding(rounding)
        if format is None and not layers:
            raise ValueError("a Stash without a format: name one, or one for some of the layers")
        parameters, tables = name_table(parameters, tables)
        chosen = {s: as_format(entry) for s, entry in (layers or {}).items()}
        for name, value in (("format", as_format(format, parameters)), ("rounding", rounding),
                            ("layers", tuple(sorted(chosen.items()))), ("draw", bool(draw)),
                            ("tables", tuple(sorted(tables.items())))):
            object.__setattr__(self, name, value)

    def formats(self, stages, config):
        """Stage number -> :class:`Format` for a network on a device that can do it."""
        if not config.stash:
            raise ConfigError(f"configuration {config.name!r} has no stash codec: use one with "
                              "stash=True, or no stash")
        layers = dict(self.layers)
        for s in layers:
            if not isinstance(s, int) or not 0 < s < len(stages):
                raise ConfigError(f"stash of layer {s!r}: the inputs of Linear 1 to "
                                  f"{len(stages) - 1} are hidden activations")
        found = {s: layers.get(s, self.format) for s in range(1, len(stages))}
        found = {s: entry for s, entry in found.items() if entry is not None}
        for s, entry in found.items():
            if not entry.kind.signed and not stages[s - 1].relu:
                raise ConfigError(f"stash of layer {s} as {entry}: this format has no signs, and "
                                  "the layer's input is not the output of a ReLU; choose another "
                                  "format for it")
        return found

    def describe(self):
        """What :meth:`from_description` makes the same Stash of."""
        return {"format": self.format and str(self.format), "rounding": self.rounding,
                "layers": [[s, entry and str(entry)] for s, entry in self.layers],
                "draw": self.draw,
                "tables": [[slot, asdict(table)] for slot, table in self.tables]}

    @classmethod
    def from_description(cls, state):
        """The Stash that ``state`` describes."""
        tables = {slot: Table(**{name: tuple(values) for name, values in table.items()})
                  for slot, table in state["tables"]}
        return cls(**{**state, "layers": dict(state["layers"]), "tables": tables})


def name_table(parameters, tables):
    """``parameters`` of a format with the slot of a Table in its place, and ``tables``, checked,
    with that Table."""
    tables, table = dict(tables), parameters.get("table")
    if isinstance(table, Table):
        parameters = {**parameters, "table": slot_of(table)}
        tables[slot_of(table)] = table
    all_tables(tables)
    return parameters, tables


def check_rounding(rounding):
    """Refuse what is no way to round."""
    if rounding not in _ROUNDING:
        raise ValueError(f"rounding={rounding!r}; use one of {', '.join(_ROUNDING)}")


def as_format(entry, parameters=()):
    """The :class:`Format` that ``entry`` names or is; ``None`` of ``None``."""
    if entry is None or isinstance(entry, Format):
        if parameters:
            raise ValueError(f"{entry} has no room for {', '.join(parameters)}: give the name of "
                             "a format")
        return entry
    return Format(entry, **parameters) if parameters else Format.parse(entry)
