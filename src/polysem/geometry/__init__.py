"""The pair kernel: cosines of all pairs of rows, in tiles, with nothing of size N x N. Arrays in, arrays out.

A cheap product (fp32, bf16 or int8) screens every tile of the upper triangle at `threshold - proved margin`;
whatever passes is decided by one canonical float64 dot product, a function of the two rows and of nothing
else. So the pairs and their values do not depend on screen, tile, threads or device. Joint counts use the
same rule at every bin edge. Cost: N^2 d / 2 multiplications in the screen's arithmetic; memory: one tile, the
rows, and the survivors. torch is imported where a product is made and nowhere else.

    mine_pairs, pair_blocks           pairs over a threshold, as one table or as a sorted stream of row blocks
    count_joint, JointCounts          exact joint histogram and partner counts over all pairs
    nearest                           the k nearest neighbours of every row
    cosine_tail, covariance_null      how large a cosine is by chance
    CovarianceNull, benjamini_hochberg
"""

from polysem.geometry.chance import CovarianceNull, benjamini_hochberg, cosine_tail, covariance_null
from polysem.geometry.joint import JointCounts, count_joint
from polysem.geometry.mine import mine_pairs, pair_blocks
from polysem.geometry.neighbours import nearest

__all__ = [
    "CovarianceNull",
    "JointCounts",
    "benjamini_hochberg",
    "cosine_tail",
    "count_joint",
    "covariance_null",
    "mine_pairs",
    "nearest",
    "pair_blocks",
]
