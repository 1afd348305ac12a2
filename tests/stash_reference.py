"""The stash formats a second time: value by value, in exact fractions, from their manual."""

from fractions import Fraction
from math import floor

from gradmill_hw.stash.tables import PRESETS


TABLES = ("lite", "normal", "aggressive")
TABLE_BITS = (3, 2, 1)
MX = {40: 2, 41: 4, 42: 7}


def two(power):
    return Fraction(2) ** power


def exponent_of(value):
    """Biased exponent of a value that is not zero."""
    value = abs(value)
    e = 126 + value.numerator.bit_length() - value.denominator.bit_length()
    return e + (value >= two(e - 126))


def shared(values, bad):
    if any(bad):
        return 255
    return max([0, *(exponent_of(v) for v in values if v)])


def q(value, e, bits, r=None, middle=False):
    if e == 255:
        return 0
    x = abs(value) / two(e - 127 - bits + 1)
    if r is None:
        result = floor(x) if middle else round(x)  # Python rounds to even
    else:
        result = floor(Fraction(floor(x * 256) + r, 256) - Fraction(middle, 2))
    return min(max(result, 0), 2**bits - 1)


class Writer:
    def __init__(self, n):
        self.n, self.bits = n, []

    def put(self, value, width):
        self.bits += [value >> k & 1 for k in range(width)]

    def fill(self):
        self.bits += [0] * (-len(self.bits) % self.n)


def encode_block(out, tag, rows, bad, random):
    """Append a block of ``rows`` (lists of fractions); ``random`` has the same shape or is None."""
    n, code = out.n, tag & 63
    values = [v for row in rows for v in row]
    rs = [None] * len(values) if random is None else [r for row in random for r in row]
    packs = 8 <= code < 16 or 24 <= code < 40 or code >= 60
    if 16 <= code < 40:  # no signs
        values = [max(v, 0) for v in values]
    fields = {0: [(tag, 8)]}
    e = shared(values, bad)
    stored = None
    if code < 16:
        planes = code % 8 + 1
        codes = signed(values, [q(v, e, planes - 1, r) for v, r in zip(values, rs, strict=True)])
        fields[0].append((e, 8))
    elif code == 16:
        planes, codes = 1, [int(v > 0) for v in values]
    elif code < 32:
        planes = code % 8
        codes = [q(v, e, planes, r) for v, r in zip(values, rs, strict=True)]
        fields[0].append((e, 8))
    elif code < 40:
        planes = code % 8
        codes = [q(v, e, planes, r, True) for v, r in zip(values, rs, strict=True)]
        stored = [v > 0 and e != 255 for v in values]
        fields[0].append((e, 8))
    elif code < 48:
        planes = MX[code] + 1
        codes = []
        for first in range(0, len(values), 16):
            group, row = values[first : first + 16], first // n
            e = shared(group, bad[row : row + 16 // n])
            t = [
                int(all(not v or exponent_of(v) < e for v in group[k : k + 2]))
                for k in range(0, len(group), 2)
            ]
            codes += signed(
                group,
                [
                    q(v, e if e == 255 else e - t[k // 2], planes - 1, rs[first + k])
                    for k, v in enumerate(group)
                ],
            )
            word = sum(bit << k for k, bit in enumerate(t))
            fields.setdefault(row, []).extend([(e, 8), (word, 8)])
    elif code < 56:
        planes, listed = code % 4 + 2, 4 if code >= 52 else 2
        codes, more = outliers(values, bad, rs, planes - 1, listed)
        fields[0] += more
    else:
        slot = code % 4
        planes = TABLE_BITS[slot] + 1
        u = [q(v, e, 8, r) for v, r in zip(values, rs, strict=True)]
        bins = [sum(edge <= x for edge in PRESETS[TABLES[slot]].thresholds) for x in u]
        codes = [b * 2 + (v < 0 and x > 0) for b, v, x in zip(bins, values, u, strict=True)]
        fields[0].append((e, 8))
    emit(out, fields, codes, stored or [c > 0 for c in codes], planes, packs)


def signed(values, magnitudes):
    return [2 * m + (v < 0 and m > 0) for v, m in zip(values, magnitudes, strict=True)]


def outliers(values, bad, rs, bits, most):
    found = [exponent_of(v) for v in values if v]
    e2 = max([0, *found])
    d = 0
    while d < 9 and 2 * sum(e >= e2 - d for e in found) < len(found):
        d += 1
    e1 = 255 if any(bad) else max(e2 - max(d - 2, 0), 0)
    above = [k for k, v in enumerate(values) if v and exponent_of(v) > e1]
    kept = sorted(sorted(above, key=lambda k: (-exponent_of(values[k]), k))[:most])
    wide = {k: q(values[k], e2, bits + 3, rs[k]) for k in kept}
    magnitudes = [wide.get(k, q(v, e1, bits, rs[k])) for k, v in enumerate(values)]
    codes = [(m % 2**bits) * 2 + (v < 0 and m > 0) for v, m in zip(values, magnitudes, strict=True)]
    entries = [(k, wide[k] >> bits) for k in kept] or [(0, 0)]
    entries += entries[-1:] * (most - len(entries))
    return codes, [
        (e1, 8),
        (e2 if kept else 0, 8),
        *(field for k, h in entries for field in ((k, 7), (h, 3))),
    ]


def emit(out, fields, codes, stored, planes, packs):
    n = out.n
    queue = [c for c, s in zip(codes, stored, strict=True) if s] if packs else codes
    written = needed = 0
    for row in range(len(codes) // n):
        if row in fields:
            for value, width in fields[row]:
                out.put(value, width)
            out.fill()
        marks = stored[row * n : row * n + n] if packs else [True] * n
        if packs:
            for mark in marks:
                out.put(mark, 1)
        needed += sum(marks)
        while written < needed:
            group = (queue[written : written + n] + [0] * n)[:n]
            for plane in range(planes):
                for c in group:
                    out.put(c >> plane & 1, 1)
            written += n


def encode(tags, rows, bad, random, n):
    """Bits of a run; block i has tag ``tags[i]``, the last one may be shorter."""
    out, at = Writer(n), 0
    for tag in tags:
        size = (16 << (tag >> 6)) // n
        part = slice(at, at + size)
        encode_block(out, tag, rows[part], bad[part], None if random is None else random[part])
        at += size
    return out.bits


class Reader:
    def __init__(self, bits, n):
        self.bits, self.n, self.at = bits, n, 0

    def get(self, width):
        part = self.bits[self.at : self.at + width]
        if len(part) < width:
            raise EOFError
        self.at += width
        return sum(bit << k for k, bit in enumerate(part))

    def fill(self):
        self.at += -self.at % self.n


def decode(bits, count, n, random=None):
    """Exact values and asked exponents of ``count`` rows."""
    source, values, asked = Reader(bits, n), [], []
    while len(values) < count:
        tag = source.get(8)
        size = min((16 << (tag >> 6)) // n, count - len(values))
        part = None if random is None else random[len(values) : len(values) + size]
        decode_block(source, tag, size, part, values, asked)
    return values, asked


def decode_block(source, tag, size, random, values, asked):
    n, code = source.n, tag & 63
    packs = 8 <= code < 16 or 24 <= code < 40 or code >= 60
    has_sign = code < 16 or code >= 40
    group = 16 // n if 40 <= code < 48 else size
    bits = (
        code % 8
        if code < 40
        else MX[code]
        if code < 48
        else code % 4 + 1
        if code < 56
        else TABLE_BITS[code % 4]
    )
    planes = max(1, bits + has_sign)
    left, rows = [], []
    for row in range(size):
        if row % group == 0:
            head = {"e": 127 if code == 16 else source.get(8)}
            if 40 <= code < 48:
                head["t"] = [source.get(1) for _ in range(8)]
            if 48 <= code < 56:
                head["e2"] = source.get(8)
                head["list"] = [
                    (source.get(7), source.get(3)) for _ in range(4 if code >= 52 else 2)
                ]
            source.fill()
        marks = [source.get(1) for _ in range(n)] if packs else [1] * n
        if sum(marks) > len(left):
            taken = [source.get(n) for _ in range(planes)]
            left += [sum((plane >> j & 1) << p for p, plane in enumerate(taken)) for j in range(n)]
        rows.append(([left.pop(0) if mark else None for mark in marks], dict(head)))
    for row, (codes, head) in enumerate(rows):
        values.append([])
        asks = head["e"]
        for lane, c in enumerate(codes):
            e, neg, mag = head["e"], False, c or 0
            if has_sign:
                neg, mag = mag & 1, mag >> 1
            if 32 <= code < 40:
                mag = 0 if c is None else (2 * mag + 1) << 7 - bits
            elif code >= 56:
                table = PRESETS[TABLES[code % 4]]
                width = 2 ** table.spread[mag]
                mag = table.low[mag] + (width // 2 if random is None else random[row][lane] % width)
            elif 48 <= code < 56:
                for index, high in head["list"] if head["e2"] else ():
                    if index == row * n + lane:
                        mag, e = (high << bits | mag % 2**bits) << 5 - bits, head["e2"]
                        asks = max(asks, e)
                        break
                else:
                    mag <<= 8 - bits
            else:
                mag = mag << 8 - bits if bits else mag << 7
            if 40 <= code < 48:
                e -= head["t"][(row % group * n + lane) // 2]
            values[-1].append((-1 if neg else 1) * mag * two(e - 134))
        asked.append(asks)


def to_rows(values, asked, n, mantissa_bits):
    """Mantissas and exponents of decoded rows."""
    mantissas, exponents = [], []
    for first in range(0, len(values), n):
        x = max(asked[first : first + n])
        for row in values[first : first + n]:
            unit = two(x - 127 - (mantissa_bits - 2))
            mantissas.append(
                [0 if x == 255 else floor(abs(v) / unit) * (-1 if v < 0 else 1) for v in row]
            )
            exponents.append(x)
    return mantissas, exponents
