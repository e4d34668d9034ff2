"""Classes with patterns, numbers and references to other classes, compiled to graphs over tokens.

A class that is named inside an entry is put in its place whole: its list as a tree, its patterns as they are. The
probability of a string is the entry's share times those of what stands in it. Where several entries begin with
the same class it stands once, and likewise where they end with it, so sizes add up and do not multiply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lm.automaton import FINAL, Automaton, determinise
from lm.class_encoding import Bools, ClassGraph, Forms, encode_forms, repeated, select, shares
from lm.entries import EntityClass
from lm.errors import EntityListError
from lm.patterns import Cat, Part, Ref, Repeat, Word, affixed, references_of, words_of
from lm.token_trees import Forest, grow
from lm.tokenizer import Tokenizer

DEEPEST = 100
"""Parts that entries may begin with in common and share; behind them each goes its own way."""

_Weighted = tuple[tuple[Part, ...], float]


def check_references(classes: Mapping[str, EntityClass], forms: Mapping[str, Forms]) -> set[str]:
    """The classes that entries name; a name without a list, or a class within itself, is an error."""
    named: dict[str, list[str]] = {}
    for name, kind in classes.items():
        found: dict[str, None] = {}
        for at in np.flatnonzero(forms[name].composite).tolist():
            part = kind.entries[int(forms[name].entry[at])].part(forms[name].texts[at])
            for ref in references_of(part) if part else ():
                if ref.class_name not in classes:
                    raise EntityListError(
                        f"<{ref.class_name}> in {forms[name].texts[at]!r} of class {name!r}",
                        f"a class of these lists: {', '.join(sorted(classes))}",
                        f"add a list for {ref.class_name!r} or correct the name",
                    )
                found[ref.class_name] = None
        named[name] = sorted(found)
    done: set[str] = set()
    for name in sorted(named):
        _refuse_circles(name, named, [], done)
    return {inner for found in named.values() for inner in found}


def _refuse_circles(name: str, named: Mapping[str, Sequence[str]], path: list[str], done: set[str]) -> None:
    if name in path:
        circle = " -> ".join([*path[path.index(name) :], name])
        raise EntityListError(
            f"class {name!r} contains itself ({circle})", "classes that end somewhere", "break the circle"
        )
    if name not in done:
        for inner in named[name]:
            _refuse_circles(inner, named, [*path, name], done)
        done.add(name)


class ClassCompiler:
    """Compiles the classes of one catalog.

    Args:
        classes: the canonical classes; their references have been checked.
        forms: all spoken forms by class.
        tokenizer: gives words their tokens.
        encodable: by class, ``(F,)`` forms that can be said in tokens; ``check`` fills it.
    """

    def __init__(
        self,
        classes: Mapping[str, EntityClass],
        forms: Mapping[str, Forms],
        tokenizer: Tokenizer,
        encodable: dict[str, Bools],
    ) -> None:
        self._classes = classes
        self._forms = forms
        self._tokenizer = tokenizer
        self._encodable = encodable
        self._trees: dict[tuple[str, str, str], Forest | None] = {}
        self._tokens: dict[str, list[int] | None] = {}

    def check(self, name: str, plain: Bools) -> None:
        """Find the forms that encode; ``plain`` ``(F,)`` says it of those that are only words."""
        forms, kind = self._forms[name], self._classes[name]
        found = plain & ~forms.composite
        for at in np.flatnonzero(forms.composite).tolist():
            part = kind.entries[int(forms.entry[at])].part(forms.texts[at])
            found[at] = part is not None and not self.unencodable(part)
        self._encodable[name] = found

    def unencodable(self, part: Part) -> str:
        """The characters in the words of a part that no token spells."""
        bad = [char for word in words_of(part) for char in self._bad(word.said)]
        for ref in references_of(part):
            bad += [*self._bad(ref.before), *self._bad(ref.after)]
        return "".join(dict.fromkeys(bad))

    def example(self, part: Part) -> list[int]:
        """Tokens of one thing that may be said."""
        if isinstance(part, Word):
            return self._encode(part.said)
        if isinstance(part, Cat):
            return [token for each in part.parts for token in self.example(each)]
        if isinstance(part, Repeat):
            return self.example(part.part) * max(part.low, 1)
        if isinstance(part, Ref):
            return self._example_of(part)
        return self.example(part.choices[0])

    def graph(self, name: str) -> ClassGraph:
        """The graph of a class."""
        graph = determinise(*_Build(name, self).run())
        if graph.end_logp[0] > -np.inf:
            raise EntityListError(
                f"an entry of class {name!r} can be said as nothing", "at least one word", "mend the entry"
            )
        return graph

    def options(self, name: str) -> list[tuple[Part, float]]:
        """The composite entries of a class with their weights."""
        forms, kind = self._forms[name], self._classes[name]
        kept = self._encodable[name] & ~repeated(forms, self._tokenizer)
        weight = shares(kind, forms.entry, kept)
        found: list[tuple[Part, float]] = []
        for at in np.flatnonzero(kept & forms.composite).tolist():
            part = kind.entries[int(forms.entry[at])].part(forms.texts[at])
            found += [(part, float(weight[at]))] if part else []
        return found

    def tree(self, ref: Ref) -> Forest | None:
        """The plain entries of a class, each with the letters that touch the reference; None without any."""
        key = ref.class_name, ref.before, ref.after
        if key not in self._trees:
            forms, kind = self._forms[ref.class_name], self._classes[ref.class_name]
            kept = self._encodable[ref.class_name] & ~repeated(forms, self._tokenizer)
            weight = shares(kind, forms.entry, kept)
            at = np.flatnonzero(kept & ~forms.composite)
            texts = [f"{ref.before}{forms.texts[i]}{ref.after}" for i in at.tolist()]
            tokens, lengths, usable = encode_forms(texts, self._tokenizer)
            sequences = select(tokens, lengths, usable, forms.entry[at], weight[at])
            self._trees[key] = grow([sequences], self._tokenizer.vocab_size) if usable.any() else None
        return self._trees[key]

    def tokens(self, said: str) -> list[int]:
        """Tokens of words that encode."""
        return self._encode(said)

    def _example_of(self, ref: Ref) -> list[int]:
        forms = self._forms[ref.class_name]
        usable = np.flatnonzero(self._encodable[ref.class_name])
        if not len(usable):
            return []
        at = int(usable[0])
        part = self._classes[ref.class_name].entries[int(forms.entry[at])].part(forms.texts[at])
        if part is not None:
            return self.example(affixed(part, ref.before, ref.after))
        return self._encode(f"{ref.before}{forms.texts[at]}{ref.after}")

    def _encode(self, said: str) -> list[int]:
        if said not in self._tokens:
            self._tokens[said] = self._tokenizer.try_encode(said)[0]
        return self._tokens[said] or []

    def _bad(self, said: str) -> str:
        return self._tokenizer.try_encode(said)[1]


class _Build:
    """The automaton of one class."""

    def __init__(self, name: str, compiler: ClassCompiler) -> None:
        self._name = name
        self._compiler = compiler
        self._automaton = Automaton(name)
        self._done: dict[tuple[int, int], int] = {}
        self._spliced: dict[tuple[str, str, str, int], int] = {}
        self._kept: list[Part] = []

    def run(self) -> tuple[Automaton, int]:
        """The automaton and its first state."""
        start = self._class(Ref(self._name), FINAL)
        return self._automaton, start

    def _class(self, ref: Ref, then: int) -> int:
        key = ref.class_name, ref.before, ref.after, then
        if key not in self._spliced:
            self._spliced[key] = self._new_class(ref, then)
        return self._spliced[key]

    def _new_class(self, ref: Ref, then: int) -> int:
        options: list[tuple[float, int]] = []
        tree = self._compiler.tree(ref)
        if tree is not None:
            options.append((float(tree.mass[0]), self._automaton.splice(tree, then)))
        rows: list[_Weighted] = []
        for part, weight in self._compiler.options(ref.class_name):
            whole = self._touched(part, ref)
            rows.append((whole.parts if isinstance(whole, Cat) else (whole,), weight))
        if rows:
            options.append((sum(weight for _, weight in rows), self._factored(rows, then)))
        if not options:
            raise EntityListError(
                f"nothing of <{ref.class_name}> in class {self._name!r} encodes",
                "at least one entry in the characters of the model",
                "give spoken forms in those characters",
            )
        return self._automaton.choose(options)

    def _touched(self, part: Part, ref: Ref) -> Part:
        try:
            return affixed(part, ref.before, ref.after)
        except EntityListError as error:
            given = f"<{ref.class_name}> in class {self._name!r}: {error.given}"
            raise EntityListError(given, error.expected, error.fix) from None

    def _factored(self, rows: Sequence[_Weighted], then: int, depth: int = 0) -> int:
        """Sequences of parts as one state; those that begin alike share their beginning."""
        if len(rows) == 1 or depth > DEEPEST:
            return self._automaton.choose([(w, self._part(Cat(parts), then)) for parts, w in rows])
        groups: dict[object, list[_Weighted]] = {}
        options: list[tuple[float, int]] = []
        for parts, weight in rows:
            if parts:
                groups.setdefault(_same(parts[0]), []).append((parts, weight))
            else:
                options.append((weight, then))
        for group in groups.values():
            rest = self._factored([(parts[1:], weight) for parts, weight in group], then, depth + 1)
            options.append((sum(weight for _, weight in group), self._part(group[0][0][0], rest)))
        return self._automaton.choose(options)

    def _part(self, part: Part, then: int) -> int:
        if isinstance(part, Word):
            return self._automaton.chain(self._compiler.tokens(part.said), then)
        if isinstance(part, Ref):
            return self._class(part, then)
        key = id(part), then
        if key not in self._done:
            self._kept.append(part)  # an id stays its own as long as the part lives
            self._done[key] = self._new_part(part, then)
        return self._done[key]

    def _new_part(self, part: Part, then: int) -> int:
        if isinstance(part, Cat):
            for each in reversed(part.parts):
                then = self._part(each, then)
            return then
        if isinstance(part, Repeat):
            return self._repeat(part, then)
        assert not isinstance(part, (Word, Ref))
        options = [(w, self._part(p, then)) for p, w in zip(part.choices, part.weights, strict=True)]
        return self._automaton.choose(options)

    def _repeat(self, part: Repeat, then: int) -> int:
        state = then
        for left in range(part.high - part.low):
            # After this time there are up to ``left`` more, each count equally likely.
            state = self._automaton.choose([(1.0, then), (left + 1.0, self._part(part.part, state))])
        for _ in range(part.low):
            state = self._part(part.part, state)
        return state


def _same(part: Part) -> object:
    """What tells parts apart that may share a place."""
    if isinstance(part, Word):
        return "word", part.said
    if isinstance(part, Ref):
        return "ref", part.class_name, part.before, part.after
    return "part", id(part)
