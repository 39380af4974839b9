"""How sure the order of settings is: variances over prompts and seeds, and the confidence set of the best.

S settings are scored on the same P held-out pairs of G prompts, setting s with R_s seeds. Notation: y[s, r, p] is the score
of a pair, m[s] the mean over seeds and pairs. Two things make m[s] uncertain.

*Prompts.* Pairs of a prompt are alike, and all settings see the same pairs, so differences are paired. With
u[s, g] = sum over the pairs p of prompt g of (mean over seeds of y[s, r, p] - m[s]) / P, the covariance of two means is
C[i, j] = G / (G - 1) * sum over g of u[i, g] u[j, g]: the cluster-robust variance with its small-sample factor (Liang and
Zeger 1986, Biometrika 73; Cameron and Miller 2015, Journal of Human Resources 50), with G - 1 degrees of freedom.

*Seeds.* All pairs of a trial share its seed. s2 is the variance of the trials' means around m[s], pooled over the settings
with two seeds or more, with nu = sum of (R_s - 1) degrees of freedom. Seeds are taken as independent between settings, as
a seed does not do the same to two settings. What a seed does to single pairs counts in both parts, which is on the careful
side.

The variance of a difference is C[i, i] + C[j, j] - 2 C[i, j] + s2 / R_i + s2 / R_j; se[i, j] is its root.

*The best.* Setting i is out of the set if (m[j] - m[i]) / se[i, j] > c[i] for a setting j (multiple comparisons with the
best: Hsu 1981, Annals of Statistics 9, "Simultaneous confidence intervals for all distances from the best", and for
unequal variances Edwards and Hsu 1983, JASA 78). c[i] is the 97.5 % quantile of the largest of these ratios over j when all
settings are equal, drawn by a Gaussian multiplier bootstrap over prompts: each prompt's u is multiplied by the same normal
number in all settings, so that the correlation between settings is kept (Chernozhukov, Chetverikov and Kato 2013, Annals
of Statistics 41). To the draws of the seeds, normal with variance s2 / R_s, nothing is common but their scale. Each part
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
class Spread:
    """The means of S settings and how they vary.

    Attributes:
        means: (S,).
        parts: (K, S); parts.T @ parts is the covariance C over prompts.
        seeds: (S,) trials of each setting.
        prompts: G.
        seed_variance: s2, of one trial's mean.
        seed_df: nu; 0 where no setting has two seeds, and s2 is 0 then.
    """

    means: Floats
    parts: Floats
    seeds: NDArray[np.int64]
    prompts: int
    seed_variance: float
    seed_df: int

    def without_seeds(self) -> "Spread":
        """As if seeds made no noise."""
        return replace(self, seed_variance=0.0, seed_df=0)

    def errors(self) -> Floats:
        """(S, S) standard errors of the differences; exactly 0 where two settings never differ."""
        covariance = self.parts.T @ self.parts
        own = np.diag(covariance)
        terms = own[:, None] + own
        prompts = terms - 2 * covariance
        prompts[prompts <= ZERO * terms] = 0.0
        share = self.seed_variance / self.seeds
        variance = prompts + share[:, None] + share
        np.fill_diagonal(variance, 0.0)
        return np.sqrt(variance)

    def mean_of(self, members: Sequence[int]) -> tuple[float, float, float]:
        """The mean of some settings' means, and its standard errors from prompts and from seeds."""
        chosen = list(members)
        over_prompts = float(np.linalg.norm(self.parts[:, chosen].mean(axis=1)))
        over_seeds = float(np.sqrt(self.seed_variance * (1 / self.seeds[chosen]).sum())) / len(chosen)
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


def spread(values: Sequence[Floats], clusters: NDArray[np.int64]) -> Spread:
    """Means and variances of settings.

    Args:
        values: of each setting (R_s, P) scores of its trials.
        clusters: (P,) number of each pair's prompt, from 0 without gaps.
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
    df = sum(len(t) - 1 for t in trials)
    squares = sum(float(((t - t.mean()) ** 2).sum()) for t in trials)
    return Spread(means, parts, np.array([len(t) for t in trials]), prompts, squares / df if df else 0.0, df)


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

    The (ANGLES,) values belong to equally spaced angles arctan(error from seeds / error from prompts).
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
    if found.seed_variance > 0:
        own = np.sqrt(found.seed_variance / found.seeds).astype(np.float32)
        normal = rng.standard_normal((len(own), draws), dtype=np.float32)
        noise += own[:, None] * normal * _t_scale(rng, found.seed_df, draws)
    return noise


def _t_scale(rng: np.random.Generator, df: int, draws: int) -> NDArray[np.float32]:
    """What makes a normal number one of a t distribution; without degrees of freedom there is nothing to scale."""
    if df <= 0:
        return np.ones(draws, np.float32)
    return np.sqrt(df / rng.chisquare(df, draws)).astype(np.float32)
