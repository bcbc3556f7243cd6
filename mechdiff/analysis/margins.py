"""What counts as none, by claim: fixed in advance in `checkpoints/study/RULES.md`.

Claims decide by these, and `validation` measures how often they then err.
"""

import math

DIVERGENCE = 0.015  # nats: the smallest entropy divergence that the paper reports
RATIO = math.log(1.042)  # of the logarithm of a ratio of complexities: half of what the paper reports
LIKE_LOSSES = 1.1  # ratio of mean clean losses up to which networks are compared as alike
ROLES = 0.1  # of a correlation above chance
OF_RANDOM_SETS = 0.95  # quantile of random channel sets that a bottleneck must exceed
