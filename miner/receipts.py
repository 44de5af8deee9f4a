"""Why a sample was picked, in numbers that can be recomputed and in words that an annotator understands."""

from hardloop.core.records import Arm

_UNSURE = 0.5  # a margin under one half: the second guess has at least a third of the first's standing
_DISAGREE = 0.1  # two members at 0.8 and 0.5 for the same class differ by about this much
_NEW = 0.5  # cosine similarity: more than 60 degrees from everything asked for
_STRONG = 0.75
_FEW = 1.25  # at the default exponent: under two thirds of the mean number of labels


def reasons(
    arm: Arm,
    method: str,
    *,
    uncertainty: float,
    lam: float,
    disagreement: float,
    covers: int,
    duplicates: int,
    damping: float,
    priority: float,
    balance: float,
    nearest_similarity: float | None,
    propensity: float | None,
) -> tuple[str, ...]:
    """The reasons for one pick, the strongest first; never empty."""
    if arm is Arm.AUDIT:
        return (f"drawn at random from the audit holdout to measure accuracy ({_chance(propensity)})",)
    if arm is Arm.EXPLORATION:
        return (f"drawn at random to compare mining with chance ({_chance(propensity)})",)
    if method == "random":
        return ("drawn at random",)
    said: list[tuple[float, str]] = []
    if lam > 0.0 and uncertainty >= _UNSURE:
        degree = "cannot decide" if uncertainty >= 0.9 else "is unsure"
        said.append(
            (0.5 + uncertainty * lam, f"the model {degree} between its two likeliest classes ({uncertainty:.2f})")
        )
    if disagreement >= _DISAGREE:
        said.append((0.6 + disagreement, f"models disagree about it ({disagreement:.2f} of 1)"))
    if nearest_similarity is None:
        said.append((1.0, "nothing has been asked for yet"))
    elif nearest_similarity < _NEW and method != "margin":
        said.append(
            (1.0 - nearest_similarity, f"unlike anything asked for so far (similarity {nearest_similarity:.2f})")
        )
    if covers > 1:
        said.append((_STRONG, f"stands for {covers:,} samples that nothing asked for resembles as much"))
    if duplicates > 1:
        said.append((0.4, f"{duplicates:,} near-identical samples are in the pool"))
    if priority > 1.0:
        said.append((0.9, f"its class or source has priority {priority:g}"))
    if balance >= _FEW:
        said.append((0.5, f"few of what it looks like are labelled so far (weighs {balance:.1f} times)"))
    if damping < 1.0:
        said.append((0.0, f"possibly not a usable image: counted at {damping:g} of its weight"))
    if not said:
        said.append((0.0, "the most valuable of what was left"))
    return tuple(text for _, text in sorted(said, key=lambda entry: -entry[0]))


def _chance(propensity: float | None) -> str:
    assert propensity is not None
    return "certain" if propensity >= 1.0 else f"chance 1 in {1.0 / propensity:,.0f}"
