"""What was learned, in words: a sentence for each main claim, written from its verdicts and numbers.

findings = evidence.gather("../data/results/full", "../data/results")
display(Markdown(lessons.told(findings)))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .evidence import SIGNS, Finding, number_text

__all__ = ["LESSONS", "Lesson", "told"]


class Lesson(NamedTuple):
    """What is said of claim `key` where all judged tasks support it (held) or refuse it (failed), and of one measure."""

    key: str
    title: str
    held: str
    failed: str
    measure: str
    words: str


LESSONS = (
    Lesson(
        "chain_of_steps.several", "Several answers at first", "The first clean estimate holds several answers.",
        "The first clean estimate holds hardly more than one answer.",
        "alive_first", "Effective number of candidates at step 0",
    ),
    Lesson(
        "chain_of_steps.steps", "What the steps add", "The answer is decided along the steps, not in one pass.",
        "One pass decides: the leading answer stays, or the later steps solve no more puzzles.",
        "gain", "Share solved by the last estimate minus share solved by the first",
    ),
    Lesson(
        "chain_of_steps.posterior_mean", "Exploration or average",
        "Where several answers are right, several show in the very first estimate: an average of what is possible, "
        "without any search. Candidates alone are no evidence of exploration.",
        "Several right answers do not show together in the first estimate.",
        "alive_gap", "Candidates that several right answers add at step 0",
    ),
    Lesson(
        "chain_of_steps.not_frames", "Steps, not frames",
        "Early and late frames settle together; there is no chain of frames.",
        "Early and late frames do not settle together.",
        "frame_lag", "Steps of 20 by which late frames settle after early ones",
    ),
    Lesson(
        "noise.step", "Noise at a step", "Noise put into all frames at one step costs much of the score.",
        "Noise put into all frames at one step costs little.", "step_damage", "Fall of the score",
    ),
    Lesson(
        "noise.renoise", "The control for it",
        "New noise of the right level around the estimate costs as much: the step is sensitive to noise as such.",
        "New noise of the right level around the estimate costs little. So the damage above is that of a lost estimate and "
        "a false noise level; it does not show that the steps are fragile.", "renoise_damage", "Fall of the score",
    ),
    Lesson(
        "working_memory.states", "Working memory", "States of the frames that do not show a hidden thing carry it.",
        "States of the frames that do not show a hidden thing seldom decide its place; the model can look it up in the "
        "given picture at every step.", "swap_flip", "Rate at which exchanged states win",
    ),
    Lesson(
        "self_correction.corrects", "Self-correction",
        "Wrong first answers are mended more often than right ones are spoiled.",
        "Wrong first answers are mended too rarely, or not more often than right ones are spoiled.",
        "net", "Share mended minus share spoiled",
    ),
    Lesson(
        "perception_before_action.order", "Perception before action", "What and where are settled before how.",
        "What and where are not settled clearly before how.", "onset_gap", "Steps of 20 by which how comes later",
    ),
    Lesson(
        "layers.foreground", "Layers: energy", "Deeper layers give more of their energy to the foreground.",
        "Deeper layers do not give more of their energy to the foreground, once the given frame and the few largest tokens "
        "are left out.", "foreground_gain", "Gain of the log ratio, last third of the layers minus first",
    ),
    Lesson(
        "layers.probes", "Layers: read-out", "What is where can be read in earlier layers than the answer.",
        "What is where cannot be read in earlier layers than the answer.", "probe_gap", "Layers between the two",
    ),
    Lesson(
        "latent_swapping.middle", "Latent swapping",
        "Exchanging one middle layer's update at the first step exchanges the answer.",
        "Exchanging one middle layer's update at the first step seldom exchanges the answer.", "flip_middle", "Flip rate",
    ),
    Lesson(
        "frames_and_distillation.exploration", "Distillation", "The four-step student explores less than its teacher.",
        "The four-step student explores as much as its teacher, or hardly less.",
        "exploration_lost", "Candidates at step 0, teacher minus student",
    ),
    Lesson(
        "frames_and_distillation.depth", "Steps against depth",
        "A model of three blocks gains more by its steps than one of ten: steps stand in for depth.",
        "A model of three blocks gains no more by its steps than one of ten, or hardly more.",
        "gain_gap", "Gain of three blocks minus gain of ten, in share solved",
    ),
    Lesson(
        "ensemble.gain", "Ensemble", "Merging three seeds raises the score.",
        "Merging three seeds raises the score hardly or not at all.",
        "merge_gain", "Gain in score",
    ),
    Lesson(
        "ensemble.middle", "Which layers to merge", "The middle layers gain more than the others.",
        "The middle layers gain no more than the others, or hardly more.",
        "middle_minus_other", "Gain of the middle third minus that of the others",
    ),
    Lesson(
        "ensemble.equal_compute", "At equal cost", "Merging beats a choice by early agreement among as many runs.",
        "Merging does not beat a choice by early agreement among as many runs, or hardly.",
        "merge_minus_agreement", "Score of the merge minus score of the choice",
    ),
)  # fmt: skip


def _listed(findings: Sequence[Finding]) -> str:
    return ", ".join(f.task.replace("_", " ") for f in findings)


def _spread(findings: Sequence[Finding], measure: str) -> str:
    """The measure of the given findings: all where they are three or fewer, else the lowest and the highest."""
    found = [(f, f.rows[measure][0 if f.run == "full" else 1]) for f in findings]
    found = sorted([pair for pair in found if pair[1] is not None], key=lambda pair: pair[1]["value"])
    texts = []
    for finding, number in found:
        task = finding.task.replace("_", " ") + ", default run" * (finding.run == "default")
        texts.append(f"{number_text(number)} ({task})")
    return "; ".join(texts) if len(texts) <= 3 else f"from {texts[0]} to {texts[-1]}"


def told(findings: Sequence[Finding], lessons: Sequence[Lesson] = LESSONS) -> str:
    """A Markdown list: a sentence for each claim in `lessons`, and the numbers that it rests on.

    The sentence follows from the verdicts: `held` where all judged tasks support the claim, `failed` where all refuse
    it, else which tasks do what. Claims that were not measured are named at the end. Raises ValueError for a claim that is
    not among the findings.
    """
    lines, silent = [], []
    for lesson in lessons:
        judged = [f for f in findings if f.key == lesson.key]
        if not judged:
            raise ValueError(f"no claim {lesson.key!r} among the findings")
        judged = [f for f in judged if f.task]
        if not judged:
            silent.append(lesson.title)
            continue
        parts = {word: [f for f in judged if f.verdict == word] for word in SIGNS}
        agreed = f"(Tasks: {len(judged)} of {len(judged)}.)"
        if len(parts["supported"]) == len(judged):
            said = f"{lesson.held} {agreed}"
        elif len(parts["not supported"]) == len(judged):
            said = f"{lesson.failed} {agreed}"
        else:
            shares = [f"{word} on {_listed(part)}" for word, part in parts.items() if part]
            said = f"“{judged[0].claim.rstrip('.')}” is {'; '.join(shares)}."
        numbers = _spread(judged, lesson.measure)
        lines.append(f"- **{lesson.title}.** {said} {lesson.words}: {numbers}.")
    if silent:
        lines.append(f"- *Not measured*: {', '.join(silent)}.")
    return "\n".join(lines)
