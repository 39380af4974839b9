"""How sure the order of settings is: variances over prompts and seeds, and the confidence set of the best.

S settings are scored on the same P held-out pairs of G prompts, setting s with R_s seeds. Notation: y[s, r, p] is the score
of a pair, m[s] the mean over seeds and pairs. Two things make m[s] uncertain.

*Prompts.* Pairs of a prompt are alike, and all settings see the same pairs, so differences are paired. With
u[s, g] = sum over the pairs p of prompt g of (mean over seeds of y[s, r, p] - m[s]) / P, the covariance of two means is
C[i, j] = G / (G - 1) * sum over g of u[i, g] u[j, g]: the cluster-robust variance with its small-sample factor (Liang and
Zeger 1986, Biometrika 73; Cameron and Miller 2015, Journal of Human Resources 50), with G - 1 degrees of freedom.

*Seeds.* All pairs of a trial share its seed. s2 is the variance of the trials' means around m[s], pooled over the settings
with two seeds or more, with nu = sum of (R_s - 1) degrees of freedom; of m[s] it is s2 / R_s. Seeds are taken as independent
between settings, as a seed does not do the same to two settings. What a seed does to single pairs counts in both parts,
which is on the careful side.

*Two kinds of seeds.* Where `seed` is crossed with `data.seed`, trials that share either are alike, and R_s trials are not
R_s draws: with 2 data seeds there are two draws of the order of the pairs, however many seeds go through each. Each kind is
then a noise of its own: a block is the trials of one of its seeds, and s2 the variance of the blocks' means, with the sum of
(blocks - 1) degrees of freedom; of m[s] it is s2 times the sum of (trials of the block / R_s)^2. The noises add up. What is
neither kind's but that of a trial counts in both, again on the careful side: subtracting it once, as two-way clustering does
(Cameron, Gelbach and Miller 2011, Journal of Business and Economic Statistics 29), takes more blocks than sweeps have. A
kind whose blocks lie within those of the other everywhere (each data seed with seeds of its own) needs no part: blocks that
are independent hold all of the noise.

The variance of a difference is C[i, i] + C[j, j] - 2 C[i, j] and, of each noise, its variance of m[i] and of m[j]; se[i, j]
is its root.

*The best.* Setting i is out of the set if (m[j] - m[i]) / se[i, j] > c[i] for a setting j (multiple comparisons with the
best: Hsu 1981, Annals of Statistics 9, "Simultaneous confidence intervals for all distances from the best", and for
unequal variances Edwards and Hsu 1983, JASA 78). c[i] is the 97.5 % quantile of the largest of these ratios over j when all
settings are equal, drawn by a Gaussian multiplier bootstrap over prompts: each prompt's u is multiplied by the same normal
number in all settings, so that the correlation between settings is kept (Chernozhukov, Chetverikov and Kato 2013, Annals
of Statistics 41). To the draws of a noise of seeds, normal with its variances, nothing is common but their scale. Each part
is multiplied by its own sqrt(df / chi2(df)), which makes it a t with G - 1 and with nu degrees of freedom. The best
setting itself is thrown out in at most 2.5 % of sweeps; with two equal settings either may be, so that a winner is
claimed in at most 5 %, and with more equal settings more rarely, as all but one must be out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVEL = 0.975  # one-sided
MOST_DRAWS = 10_000
LEAST_DRAWS = 2_000
BUDGET = 400_000_000  # draws x settings x settings, about a second; very many settings get fewer draws
ANGLES = 17
LEAST_PROMPTS = 6  # if all of five prompts favour one of two equal settings, that is chance in 1 of 16 sweeps
ZERO = 1e-12  # what rounding leaves of a variance or difference of 0, relative to its terms


@dataclass(frozen=True)
class SeedNoise:
    """What one kind of seed does to the means of S settings, in each setting by itself.

    Attributes:
        variances: (S,) of the means.
        df: nu, of their common scale; above 0.
    """

    variances: Floats
    df: int


@dataclass(frozen=True)
class Spread:
    """The means of S settings and how they vary.

    Attributes:
        means: (S,).
        parts: (K, S); parts.T @ parts is the covariance C over prompts.
        seeds: (S,) trials of each setting.
        prompts: G.
        noises: of the seeds; none where no setting has two.
    """

    means: Floats
    parts: Floats
    seeds: NDArray[np.int64]
    prompts: int
    noises: tuple[SeedNoise, ...]

    @property
    def seed_df(self) -> int:
        """The least degrees of freedom of a noise of seeds; 0 where there is none."""
        return min((noise.df for noise in self.noises), default=0)

    @property
    def seed_variances(self) -> Floats:
        """(S,) variances of the means that come from seeds."""
        return sum((noise.variances for noise in self.noises), np.zeros(len(self.means)))

    def without_seeds(self) -> "Spread":
        """As if seeds made no noise."""
        return replace(self, noises=())

    def errors(self) -> Floats:
        """(S, S) standard errors of the differences; exactly 0 where two settings never differ."""
        covariance = self.parts.T @ self.parts
        own = np.diag(covariance)
        terms = own[:, None] + own
        prompts = terms - 2 * covariance
        prompts[prompts <= ZERO * terms] = 0.0
        share = self.seed_variances
        variance = prompts + share[:, None] + share
        np.fill_diagonal(variance, 0.0)
        return np.sqrt(variance)

    def mean_of(self, members: Sequence[int]) -> tuple[float, float, float]:
        """The mean of some settings' means, and its standard errors from prompts and from seeds."""
        chosen = list(members)
        over_prompts = float(np.linalg.norm(self.parts[:, chosen].mean(axis=1)))
        over_seeds = float(np.sqrt(self.seed_variances[chosen].sum())) / len(chosen)
        return float(self.means[chosen].mean()), over_prompts, over_seeds


@dataclass(frozen=True)
class Best:
    """The confidence set of the best setting.

    Attributes:
        members: (S,) whether the setting may be the best.
        low: (S,) and `high`: how far each is behind the best one, all settings at once. Highs are Hsu's; lows come from
            all pairs of settings (the 95 % quantile of the largest ratio), so that one may be 0 for a setting that is
            out of the set: behind, but by an unknown amount.
    """

    members: NDArray[np.bool_]
    low: Floats
    high: Floats


def spread(
    values: Sequence[Floats], clusters: NDArray[np.int64], seeds: Sequence[NDArray[np.int64]] | None = None
) -> Spread:
    """Means and variances of settings.

    Args:
        values: of each setting (R_s, P) scores of its trials.
        clusters: (P,) number of each pair's prompt, from 0 without gaps.
        seeds: of each setting (R_s, K) numbers of its trials' seeds, from 0 without gaps, of K kinds; None: each trial has
            a seed of its own.
    """
    n, prompts = len(clusters), int(clusters.max()) + 1
    trials = [v.mean(axis=1) for v in values]
    means = np.array([t.mean() for t in trials])
    centred = np.stack([v.mean(axis=0) for v in values]) - means[:, None]  # (S, P)
    sums = np.zeros((prompts, len(values)))
    np.add.at(sums, clusters, centred.T / n)
    parts = sums * np.sqrt(prompts / max(1, prompts - 1))
    if prompts > len(values):  # as many rows as settings say the same: R'R = U'U
        parts = np.asarray(np.linalg.qr(parts, mode="r"))
    seeds = [np.arange(len(t))[:, None] for t in trials] if seeds is None else seeds
    noises = tuple(noise for blocks in _kinds(seeds) if (noise := _seed_noise(trials, blocks)))
    return Spread(means, parts, np.array([len(t) for t in trials]), prompts, noises)


def _kinds(seeds: Sequence[NDArray[np.int64]]) -> list[list[NDArray[np.int64]]]:
    """Of each kind of seed that makes a noise of its own the (R_s,) blocks of each setting."""
    kinds = [list(columns) for columns in zip(*(own.T for own in seeds), strict=True)]
    for number in reversed(range(len(kinds))):
        others = kinds[:number] + kinds[number + 1 :]
        if any(all(map(_within, kinds[number], other)) for other in others):
            kinds = others
    return kinds


def _within(fine: NDArray[np.int64], coarse: NDArray[np.int64]) -> bool:
    """Whether each block of one kind lies within one of several of another, or there is but one of it."""
    blocks, crossings = len(np.unique(fine)), len(np.unique(np.stack([fine, coarse]), axis=1).T)
    return blocks == 1 or (crossings == blocks and len(np.unique(coarse)) > 1)


def _seed_noise(trials: Sequence[Floats], blocks: Sequence[NDArray[np.int64]]) -> SeedNoise | None:
    """From the (R_s,) means of each setting's trials; None where no setting has two blocks."""
    sizes = [np.bincount(own) for own in blocks]
    means = [np.bincount(own, t) / size for t, own, size in zip(trials, blocks, sizes, strict=True)]
    df = sum(len(own) - 1 for own in means)
    if df == 0:
        return None
    squares = sum(float(((own - own.mean()) ** 2).sum()) for own in means)
    shares = np.array([((size / size.sum()) ** 2).sum() for size in sizes])
    return SeedNoise(squares / df * shares, df)


def best(found: Spread, *, seed: int, draws: int | None = None) -> Best:
    """Which settings may be the best, and how far each is behind.

    Args:
        found: the settings, scored between 0 and 1.
        seed: of the draws.
        draws: how many; None: as many as the time allows.
    """
    n = len(found.means)
    if n == 1:
        return Best(np.ones(1, bool), np.zeros(1), np.zeros(1))
    if found.prompts < LEAST_PROMPTS:
        return Best(np.ones(n, bool), np.zeros(n), np.ones(n))
    errors = found.errors()
    draws = draws or int(np.clip(BUDGET // n**2, LEAST_DRAWS, MOST_DRAWS))
    limits, overall = critical(found, errors, draws, np.random.default_rng(seed))
    ahead = found.means - found.means[:, None]  # [i, j]: how far j is ahead of i
    members = np.asarray((ahead <= limits[:, None] * errors + ZERO).all(axis=1))
    low = np.clip((ahead - overall * errors).max(axis=1), 0.0, 1.0)
    rivals = np.where(members[None, :] & ~np.eye(n, dtype=bool), ahead + limits * errors, 0.0)
    return Best(members, low, np.clip(rivals.max(axis=1), 0.0, 1.0))


def t_quantiles(found: Spread, *, seed: int) -> Floats:
    """Two-sided 95 % quantiles of a mean's error in standard errors, from all noise by prompts to all by seeds.

    The (ANGLES,) values belong to equally spaced angles arctan(error from seeds / error from prompts). Of several noises of
    seeds the least degrees of freedom count: a sum of t's has no heavier tails than that one (Mickey and Brown 1966, Annals
    of Mathematical Statistics 37).
    """
    rng = np.random.default_rng(seed)
    over_prompts = rng.standard_normal(4 * MOST_DRAWS) * _t_scale(rng, found.prompts - 1, 4 * MOST_DRAWS)
    over_seeds = rng.standard_normal(4 * MOST_DRAWS) * _t_scale(rng, found.seed_df, 4 * MOST_DRAWS)
    angles = np.linspace(0, np.pi / 2, ANGLES)
    return np.array([np.quantile(abs(np.cos(a) * over_prompts + np.sin(a) * over_seeds), 0.95) for a in angles])


def half_width(over_prompts: float, over_seeds: float, quantiles: Floats) -> float:
    """Of the 95 % interval of a mean with these two standard errors."""
    angle = np.arctan2(over_seeds, over_prompts)
    return float(np.interp(angle, np.linspace(0, np.pi / 2, ANGLES), quantiles) * np.hypot(over_prompts, over_seeds))


def critical(found: Spread, errors: Floats, draws: int, rng: np.random.Generator) -> tuple[Floats, float]:
    """The (S,) values of c, and the 95 % quantile of the largest ratio of all pairs of settings."""
    n = len(found.means)
    inverse = np.divide(1.0, errors, out=np.zeros_like(errors), where=errors > 0).astype(np.float32)
    largest = np.empty((n, draws), np.float32)
    chunk = max(64, 2**17 // n)  # half a megabyte at a time stays in the processor's cache
    for start in range(0, draws, chunk):
        noise = _noise(found, min(chunk, draws - start), rng)
        for i in range(n):
            ratios = noise - noise[i]
            ratios *= inverse[i][:, None]
            ratios.max(axis=0, out=largest[i, start : start + chunk])
    return np.quantile(largest, LEVEL, axis=1).astype(np.float64), float(np.quantile(largest.max(axis=0), 0.95))


def _noise(found: Spread, draws: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """(S, draws) errors of the settings' means."""
    parts = found.parts.astype(np.float32)
    normal = rng.standard_normal((len(parts), draws), dtype=np.float32)
    noise = parts.T @ normal * _t_scale(rng, found.prompts - 1, draws)
    for part in found.noises:
        own = np.sqrt(part.variances).astype(np.float32)
        normal = rng.standard_normal((len(own), draws), dtype=np.float32)
        noise += own[:, None] * normal * _t_scale(rng, part.df, draws)
    return noise


def _t_scale(rng: np.random.Generator, df: int, draws: int) -> NDArray[np.float32]:
    """What makes a normal number one of a t distribution; without degrees of freedom there is nothing to scale."""
    if df <= 0:
        return np.ones(draws, np.float32)
    return np.sqrt(df / rng.chisquare(df, draws)).astype(np.float32)
