"""Integers side by side in a vector of the processor, for kernels that the compiler makes no good vectors of.

Of a loop whose number of turns is known when it runs, numba's compiler makes vectors for many turns: at each entry it
checks whether arrays overlap, and what its vectors do not fill goes through slower loops. A loop of few turns that are
known before it unrolls, without vectors. A row is a loop of few turns. So an `intrinsic` (see `cachedlrm.base.kernels`)
says its vectors itself: `load`, `store`, and Python's operators between them.
"""

from typing import Any

from llvmlite import ir


class Lanes:
    """Integers without sign while code that computes with them is made.

    Operators take others of the same size and number, or a constant. Methods have the names that torch's tensors have
    for the same.

    Args:
        builder: llvmlite's, of the code.
        value: its vector of integers.
    """

    def __init__(self, builder: Any, value: Any) -> None:
        self._builder = builder
        self._value = value

    def __add__(self, other: "Lanes | int") -> "Lanes":
        return self._by("add", other)

    def __sub__(self, other: "Lanes | int") -> "Lanes":
        return self._by("sub", other)

    def __rsub__(self, other: int) -> "Lanes":
        return self._made(self._builder.sub(self._operand(other), self._value))

    def __mul__(self, other: "Lanes | int") -> "Lanes":
        return self._by("mul", other)

    def __and__(self, other: "Lanes | int") -> "Lanes":
        return self._by("and_", other)

    def __or__(self, other: "Lanes | int") -> "Lanes":
        return self._by("or_", other)

    def __xor__(self, other: "Lanes | int") -> "Lanes":
        return self._by("xor", other)

    def __lshift__(self, other: "Lanes | int") -> "Lanes":
        return self._by("shl", other)

    def __rshift__(self, other: "Lanes | int") -> "Lanes":
        return self._by("lshr", other)

    def __lt__(self, other: int) -> "Lanes":
        return self._made(self._builder.icmp_unsigned("<", self._value, self._operand(other)))

    def __gt__(self, other: int) -> "Lanes":
        return self._made(self._builder.icmp_unsigned(">", self._value, self._operand(other)))

    def where(self, condition: "Lanes", other: "Lanes") -> "Lanes":
        """These where a comparison holds, and the others elsewhere."""
        return self._made(self._builder.select(condition._value, self._value, other._value))

    def masked_fill(self, condition: "Lanes", number: int) -> "Lanes":
        """A constant where a comparison holds, and these elsewhere."""
        return self._made(self._builder.select(condition._value, self._operand(number), self._value))

    def clamp(self, *, max: int) -> "Lanes":
        """The lesser of each and a constant."""
        return self.masked_fill(self > max, max)

    def resized(self, bits: int) -> "Lanes":
        """As many integers of so many bits, which lose what is above, or get zeros."""
        kind = self._value.type
        change = self._builder.zext if bits > kind.element.width else self._builder.trunc
        return self._made(change(self._value, ir.VectorType(ir.IntType(bits), kind.count)))

    def cut(self, bits: int) -> "Lanes":
        """Each cut into integers of so many bits, the lowest first."""
        kind = self._value.type
        count = kind.count * kind.element.width // bits
        return self._made(self._builder.bitcast(self._value, ir.VectorType(ir.IntType(bits), count)))

    def times(self, factor: float) -> "Lanes":
        """The bits of the float32s of these integers of 32 bits, below 2^31, times a factor."""
        floats = ir.VectorType(ir.FloatType(), self._value.type.count)
        numbers = self._builder.sitofp(self._value, floats)
        product = self._builder.fmul(numbers, ir.Constant(floats, [factor] * floats.count))
        return self._made(self._builder.bitcast(product, self._value.type))

    def store(self, place: Any) -> None:
        """Writes them to a `place_of` integers of their size."""
        kind = self._value.type
        pointer = self._builder.bitcast(place, kind.as_pointer())
        self._builder.store(self._value, pointer, align=kind.element.width // 8)

    def _by(self, operator: str, other: "Lanes | int") -> "Lanes":
        return self._made(getattr(self._builder, operator)(self._value, self._operand(other)))

    def _operand(self, other: "Lanes | int") -> Any:
        kind = self._value.type
        return other._value if isinstance(other, Lanes) else ir.Constant(kind, [other] * kind.count)

    def _made(self, value: Any) -> "Lanes":
        return Lanes(self._builder, value)


def place_of(builder: Any, data: Any, word: Any, number: Any, bits: int) -> Any:
    """Where the ``number`` th integer of so many bits after a ``word`` of those at ``data`` is."""
    start = builder.bitcast(builder.gep(data, [word]), ir.IntType(bits).as_pointer())
    return builder.gep(start, [number])


def load(builder: Any, place: Any, bits: int, count: int) -> Lanes:
    """The integers from a `place_of` them on."""
    pointer = builder.bitcast(place, ir.VectorType(ir.IntType(bits), count).as_pointer())
    return Lanes(builder, builder.load(pointer, align=bits // 8))


def splat(builder: Any, value: Any, count: int) -> Lanes:
    """An integer in every lane."""
    kind, zero = ir.VectorType(value.type, count), ir.Constant(ir.IntType(32), 0)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, zero)
    return Lanes(builder, builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(zero.type, count), [0] * count)))


def counted(builder: Any, count: int, step: int) -> Lanes:
    """0, ``step``, 2 * ``step`` and so on, in 64 bits."""
    kind = ir.VectorType(ir.IntType(64), count)
    return Lanes(builder, ir.Constant(kind, [lane * step & (1 << 64) - 1 for lane in range(count)]))
