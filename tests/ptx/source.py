"""PTX as Triton writes it: one entry in a module, one instruction in a line."""

import functools
import re
from typing import NamedTuple

STATEMENT = re.compile(r"(?:@(?P<negated>!?)(?P<guard>%\w+)\s+)?(?P<opcode>[a-z][\w.:]*)\s*(?P<operands>.*);")
LABEL = re.compile(r"(\$\w+):")
PARAMETER = re.compile(r"\.param \.(\w+)[^,\n]*?(\w+_param_\d+)")
ADDRESS = re.compile(r"\[\s*([%\w]+)\s*(?:\+\s*(-?\w+)\s*)?\]")
OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")


class UnknownError(Exception):
    """PTX that the machine does not know."""


class Address(NamedTuple):
    """The number in a register, or a name, plus a number of bytes."""

    base: str
    offset: int


Item = str | int
Operand = Item | Address | tuple[Item, ...]
"""A register or name, the bits of a constant, an address in brackets, or registers in braces."""


class Instruction(NamedTuple):
    """An instruction, for the threads whose guard is true (or, negated, false); without one, for all."""

    opcode: str
    operands: tuple[Operand, ...]
    guard: str | None
    negated: bool
    text: str


class Source(NamedTuple):
    """A kernel: threads of a program, its parameters with their types, instructions, and where labels stand."""

    threads: int
    parameters: dict[str, str]
    instructions: list[Instruction]
    labels: dict[str, int]


@functools.cache
def source(ptx: str) -> Source:
    """The kernel in the text of a module (PTX ISA, "Syntax")."""
    head, body = ptx.split("\n{\n", 1)
    threads = re.search(r"\.reqntid (\d+)", head)
    if threads is None:
        raise UnknownError("a kernel without .reqntid")
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in re.sub(r"//.*", "", body.split("\n}\n", 1)[0]).splitlines():
        text = " ".join(line.split())
        label = LABEL.fullmatch(text)
        if label:
            labels[label[1]] = len(instructions)
        elif text and not text.startswith("."):
            instructions.append(_instruction(text))
    return Source(int(threads[1]), {name: kind for kind, name in PARAMETER.findall(head)}, instructions, labels)


def _instruction(text: str) -> Instruction:
    found = STATEMENT.fullmatch(text)
    if found is None:
        raise UnknownError(text)
    operands = tuple(_operand(operand) for operand in OPERAND.findall(found["operands"]))
    return Instruction(found["opcode"], operands, found["guard"], bool(found["negated"]), text)


def _operand(text: str) -> Operand:
    text = text.strip()
    if text.startswith("{"):
        return tuple(_item(item.strip()) for item in text.strip("{}").split(","))
    if text.startswith("["):
        found = ADDRESS.fullmatch(text)
        if found is None:
            raise UnknownError(text)
        return Address(found[1], int(found[2] or "0", 0))
    return _item(text)


def _item(text: str) -> Item:
    """A name, or the bits of a constant: decimal, hexadecimal, or those of a float32 after 0f ("Constants")."""
    if text.startswith("0f"):
        return int(text[2:], 16)
    return int(text.removesuffix("U"), 0) if text.lstrip("-")[0].isdigit() else text
