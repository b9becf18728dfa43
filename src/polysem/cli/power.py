"""What a plan can see, said on stderr after `polysem plan`."""

import sys
from pathlib import Path


def say_power(folder: Path) -> None:
    """The smallest slope on interference that the plan would see, for effects as spread out as the zoo's.

    Nothing is known about the study's own effects yet: the numbers are in units of the standard deviation of
    effects from pair to pair (`stats.power.PILOT`), and the ratios of the other spreads to it are those measured
    on the zoo.
    """
    from polysem.stats.power import PILOT, planned_power
    from polysem.stats.rows import SLOPE_STEP as STEP
    from polysem.store.run import RunFolder

    run = RunFolder.open(folder)
    level = run.study().effects.level
    for tokens, power in planned_power(run.table("plan"), spread=PILOT, level=level).items():
        print(
            f"power, T-{tokens}: would see, in 4 of 5 such studies, a difference between interference {STEP:g} and 0 "
            f"of {STEP * power.smallest:.2g} standard deviations of effects from pair to pair (t with {power.df:.0f} df)",
            file=sys.stderr,
        )
