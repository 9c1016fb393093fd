"""What a page finds, in words: written from the stored runs that decide, never from the run of the page.

from cosutils.report.findings import compared, finding

finding("06_self_correction")  # shows as a box: a sentence, its number, the verdict for each model
compared("06_self_correction")  # shows as a table: what the page measures, for each model
"""

from __future__ import annotations

import html
import os
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._files import read_json, read_yaml
from ..pipelines.loading import data_folder
from .claims import CALIBRATION, NOT_MEASURED, load_claims
from .evidence import SIGNS, Finding, by_model, gather, number_text
from .figures import table_of

__all__ = ["MODELS", "Box", "Part", "Said", "Table", "compared", "finding", "load_findings", "say"]

# what readers call a model -> folder below data/results
MODELS = {"ten blocks": "full", "three blocks": "shallow", "three blocks + memory": "memory"}
MIXED, NONE = "mixed", "on none"  # the tasks disagree: some support the claim, none does
_SAID = {"no room": "without room to tell"}  # where a verdict does not read as an adjective
_FIELDS = {"claim", "model", "measure", "task", "words"}


@dataclass(frozen=True)
class Part:
    """One claim of a page.

    says: sentence for each verdict, for "mixed" and "on none"; the runs of `model` choose. `measure` of
    `task` is the number that is quoted, called `words`; all three are "" where none is.
    """

    claim: str
    model: str
    says: Mapping[str, str]
    measure: str = ""
    task: str = ""
    words: str = ""


@dataclass(frozen=True)
class Said:
    """A part in words. number: "words: 0.31 [0.30, 0.32], N = 200 (maze, ten blocks)" or ""."""

    claim: str
    ours: bool
    sentence: str
    number: str
    verdicts: Mapping[str, Mapping[str, Sequence[str]]]  # model -> verdict -> tasks; empty where it was not measured


def load_findings(
    path: str | os.PathLike[str] | None = None, claims: str | os.PathLike[str] | None = None
) -> dict[str, list[Part]]:
    """The parts of every section's finding; default: the book's own.

    ValueError for a part that names a claim, model, measure or verdict that is none, or quotes a number without words.
    """
    path = data_folder() / "findings.yaml" if path is None else pathlib.Path(path)
    known = load_claims(data_folder() / "claims.yaml" if claims is None else claims)
    given = read_yaml(path)
    common = given.pop("any", {})
    found: dict[str, list[Part]] = {}
    for section, entries in given.items():
        for entry in entries:
            here = f"{path}: {section}"
            key, model = entry.get("claim"), entry.get("model")
            if key not in known:
                raise ValueError(f"{here}: no claim {key!r}")
            if model not in MODELS:
                raise ValueError(f"{here}: {key}: the model is one of {', '.join(MODELS)}, not {model!r}")
            if entry.get("measure", "") not in ("", *known[key]["measures"]):
                raise ValueError(f"{here}: {key}: its measures are {', '.join(known[key]['measures'])}")
            if missing := [field for field in ("task", "words") if "measure" in entry and field not in entry]:
                raise ValueError(f"{here}: {key}: a measure is quoted with its {missing[0]}")
            says = {word: text for word, text in entry.items() if word not in _FIELDS}
            if wrong := [word for word in says if word not in (*SIGNS, MIXED, NONE)]:
                raise ValueError(f"{here}: {key}: no verdict is called {wrong[0]!r}; there are {', '.join(SIGNS)}")
            number = {field: entry.get(field, "") for field in ("measure", "task", "words")}
            found.setdefault(section, []).append(Part(key, model, common | says, **number))
    return found


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _tasks(names: Sequence[str]) -> str:
    return _listed([name.replace("_", " ") for name in names]) or "no task"


def say(part: Part, findings: Mapping[str, Sequence[Finding]]) -> Said:
    """A part in words: the sentence of the verdict that all tasks of its model share.

    Where they disagree it is that of "mixed" if some task supports the claim, else that of "on none". Tasks without
    room do not count where all others refuse it.

    findings: model -> its judged claims, as `evidence.gather` returns them. Where the model of the part was not run
    the sentence speaks of the first that was. In a sentence {tasks} are those that support the claim, {others} the
    rest, {refused} those of them that do not support it and {open} those on which it cannot be told, {rest} both in
    words; {claim} is the claim and {shares} tells which tasks have which verdict. ValueError where no model has the
    claim.
    """
    own = {model: [f for f in found if f.key == part.claim] for model, found in findings.items()}
    if not any(own.values()):
        raise ValueError(f"no claim {part.claim!r} among the findings")
    first = next(f for found in own.values() for f in found)
    verdicts: dict[str, dict[str, list[str]]] = {}
    for model, found in own.items():
        words = dict.fromkeys(f.verdict for f in found if f.task)
        ordered = [word for word in SIGNS if word in words] + [word for word in words if word not in SIGNS]
        verdicts[model] = {word: [f.task for f in found if f.task and f.verdict == word] for word in ordered}
    model = next((name for name in (part.model, *verdicts) if verdicts.get(name)), part.model)
    split = verdicts.get(model, {})
    judged = [word for word in split if word != "no room"] if "not supported" in split else list(split)
    word = (MIXED if "supported" in split else NONE) if len(judged) > 1 else next(iter(judged), NOT_MEASURED)
    claim = first.claim.rstrip(".")
    shares = "; ".join(f"{_SAID.get(word, word)} on {_tasks(tasks)}" for word, tasks in split.items())
    template = part.says.get(word, "{claim}: {shares}." if split else "{claim}: not measured.")
    supported = split.get("supported", [])
    others = [f.task for f in own.get(model, []) if f.task and f.task not in supported]
    refused = split.get("not supported", [])
    named = dict(tasks=supported, others=others, refused=refused, open=[task for task in others if task not in refused])
    words = {"refused": "it does not", "open": "it cannot be told"}
    rest = ", ".join(f"on {_tasks(named[key])} {text}" for key, text in words.items() if named[key])
    lists = {key: _tasks(value) for key, value in named.items()}
    sentence = template.format(claim=claim, shares=shares, rest=rest, **lists)
    number = ""
    if part.measure:
        quoted = {f.task: f.rows[part.measure][0] or f.rows[part.measure][1] for f in own.get(model, []) if f.task}
        task = part.task if quoted.get(part.task) else next((t for t, value in quoted.items() if value), "")
        if task:
            number = f"{part.words}: {number_text(quoted[task])} ({task.replace('_', ' ')}, {model})"
    return Said(first.claim, first.ours, sentence, number, verdicts)


@dataclass(frozen=True)
class Box:
    """What a page finds, to be shown by a notebook: HTML with the class "finding", and the same as plain text."""

    said: Sequence[Said]
    source: str

    def claims(self) -> list[Said]:
        """What is said, once for each claim: one that is told of two models has one row of verdicts."""
        return list({one.claim: one for one in self.said}.values())

    def __repr__(self) -> str:
        lines = ["What we find. " + " ".join(one.sentence for one in self.said)]
        lines += [one.number for one in self.said if one.number]
        for one in self.claims():
            lines.append(f"{one.claim}{' (ours)' if one.ours else ''}")
            for model, split in one.verdicts.items():
                counted = ", ".join(f"{word} {len(tasks)}" for word, tasks in split.items())
                lines.append(f"    {model}: {counted or NOT_MEASURED}")
        return "\n".join([*lines, self.source])

    def _repr_html_(self) -> str:
        models = list(dict.fromkeys(model for one in self.said for model in one.verdicts))
        rows = []
        for one in self.claims():
            cells = "".join(f'<td data-model="{model}">{_chips(one.verdicts.get(model, {}))}</td>' for model in models)
            whose = ' <span class="finding-ours">ours</span>' if one.ours else ""
            rows.append(f'<tr><th scope="row">{html.escape(one.claim)}{whose}</th>{cells}</tr>')
        head = "".join(f'<th scope="col">{model}</th>' for model in models)
        sentence = html.escape(" ".join(one.sentence for one in self.said))
        numbers = "".join(f'<p class="finding-number">{html.escape(one.number)}</p>' for one in self.said if one.number)
        return (
            '<div class="finding" role="note" aria-label="What we find">'
            f'<p class="finding-said"><span class="finding-title">What we find</span> {sentence}</p>{numbers}'
            '<div class="finding-scroll"><table class="finding-verdicts"><thead>'
            f'<tr><th scope="col">claim</th>{head}</tr>'
            f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
            f'<p class="finding-source">{html.escape(self.source)}</p></div>'
        )


def _chips(split: Mapping[str, Sequence[str]]) -> str:
    """One chip for each verdict of a model: sign, word and number of tasks; the tasks stand in its title."""
    if not split:
        return f'<span class="verdict">{NOT_MEASURED}</span>'
    chips = []
    for word, tasks in split.items():
        named = html.escape(_tasks(tasks))
        text = f"{SIGNS.get(word, '·')} {word} {len(tasks)}"
        chips.append(f'<span class="verdict verdict-{word.replace(" ", "-")}" title="{named}">{text}</span>')
    return " ".join(chips)


@dataclass(frozen=True)
class Table:
    """What `models` give on a page, as HTML and as plain text. groups: claim -> rows of task, measure and numbers."""

    models: Sequence[str]
    groups: Mapping[str, Sequence[Sequence[str]]]
    source: str

    def __repr__(self) -> str:
        return f"{self._drawn[1]}\n{self.source}"

    def _repr_html_(self) -> str:
        return (
            '<div class="table-box" role="region" tabindex="0" aria-label="What the page measures, for each model">'
            f'{self._drawn[0]}</div><p class="finding-source">{html.escape(self.source)}</p>'
        )

    @property
    def _drawn(self) -> tuple[str, str]:
        return table_of(["task", "measure", *self.models], self.groups, merge=0)


def compared(section: str, data: str | os.PathLike[str] | None = None) -> Table:
    """What page `section` measures in the stored runs of `MODELS`; arguments and errors as `finding` has them."""
    found, runs = _stored(section, pathlib.Path(data_folder() if data is None else data))
    groups: dict[str, dict[tuple[str, str], dict[str, str]]] = {}
    for model, findings in found.items():
        for one in (one for one in findings if one.task):
            for measure, (number, _, _) in one.rows.items():
                row = groups.setdefault(one.claim, {}).setdefault((one.task.replace("_", " "), measure), {})
                row[model] = number_text(number)
    models = [model for model in found if any(model in row for rows in groups.values() for row in rows.values())]
    table = {claim: [[*key, *(row.get(model, "–") for model in models)] for key, row in rows.items()]
             for claim, rows in groups.items()}  # fmt: skip
    return Table(models, table, f"The stored runs of {_listed(runs)}, with 95 % intervals.")


def finding(section: str, data: str | os.PathLike[str] | None = None) -> Box:
    """What page `section`, such as "06_self_correction", finds, by the stored runs in `data`/results.

    It does not depend on what the page runs. Claims that no stored run has measured are left out.
    data: folder with claims.yaml, findings.yaml and results; default: the book's own. ValueError for a
    section that has no finding.
    """
    data = data_folder() if data is None else pathlib.Path(data)
    found, runs = _stored(section, data)
    listed = load_findings(data / "findings.yaml", data / "claims.yaml")
    source = f"Judged by the stored runs of {_listed(runs)}; the number in a chip counts tasks."
    said = [say(part, found) for part in listed[section.partition("_")[2]]]
    return Box([one for one in said if any(one.verdicts.values())], source)


def _stored(section: str, data: pathlib.Path) -> tuple[dict[str, list[Finding]], list[str]]:
    """Model -> the claims of a page as its stored run judges them, and what the runs are called."""
    claims, name = data / "claims.yaml", section.partition("_")[2]
    listed = load_findings(data / "findings.yaml", claims)
    if name not in listed:
        raise ValueError(f"no finding for {section!r}; there are: {', '.join(listed)}")
    calibration = data / "results" / CALIBRATION.name
    stored = {model: data / "results" / folder / f"{section}.json" for model, folder in MODELS.items()}
    stored = {model: path for model, path in stored.items() if path.is_file()}
    found = {model: gather(path.parent, None, claims, calibration=calibration) for model, path in stored.items()}
    found = {model: [f for f in own if f.section == name] for model, own in by_model(found, claims).items()}
    runs = []
    for model, path in stored.items():
        facts: Mapping[str, Any] = read_json(path)["provenance"]
        runs.append(f"{facts.get('model', 'cos-mini')} ({model})")
    return found, runs
