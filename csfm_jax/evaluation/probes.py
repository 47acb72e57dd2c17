"""Linear probes on frozen embeddings: fitted on train subjects, tuned on validation subjects, read on test subjects.

The strength of regularisation is the only thing tuned, by the same procedure for whatever encoder made the features.
It is chosen for a group of labels together and by a proper score (cross-entropy, squared error, partial likelihood),
because AUROC on a handful of validation positives is mostly noise and is undefined where a class is absent.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import scipy  # its parts load at their first use

# C of the logistic and of Cox's regression, 1 / alpha of ridge; from strong regularisation to weak
STRENGTHS = tuple(float(c) for c in 10.0 ** np.arange(-5.0, 1.5, 0.5))


@dataclass(frozen=True)
class Cases:
    """Cases of one split: features [n, D] float, labels [n, K] float (NaN = not labelled)."""

    features: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Probe:
    """What a probe said on the test cases.

    Attributes:
        scores: [test cases, K]; the log-odds of each class, the predicted value in the label's own unit, or (K = 1) the
            log-hazard, up to a constant.
        strength: the regularisation chosen (C = 1 / alpha).
        validation: mean validation score of every strength tried (lower is better).
    """

    scores: np.ndarray
    strength: float
    validation: dict[float, float]


def logistic(train: Cases, validation: Cases, test: Cases) -> Probe:
    """One logistic regression a label on standardised features; C by cross-entropy on the validation cases.

    A label with one class only among the train cases scores a constant (its AUROC is then one half).
    """
    from sklearn.linear_model import LogisticRegression

    tables, losses = [], []
    train_x, validation_x, test_x = _standardised(train, validation, test)
    for k in range(train.labels.shape[1]):
        known, truth = _known(train.labels[:, k])
        checked, check = _known(validation.labels[:, k])
        model = LogisticRegression(warm_start=True, max_iter=1000)  # the path starts at the strongest regularisation
        table, loss = np.zeros((len(STRENGTHS), len(test_x))), np.zeros(len(STRENGTHS))
        if 0 < truth.sum() < len(truth):
            for i, strength in enumerate(STRENGTHS):
                model.set_params(C=strength)
                with warnings.catch_warnings():
                    # a separable label never converges at weak regularisation, and loses on validation
                    warnings.simplefilter("ignore")
                    model.fit(train_x[known], truth > 0.5)
                table[i] = model.decision_function(test_x)
                loss[i] = _cross_entropy(model.decision_function(validation_x[checked]), check) if len(check) else 0
        tables.append(table)
        losses.append(loss)
    return _chosen(np.stack(tables, axis=-1), np.mean(losses, axis=0))


def ridge(train: Cases, validation: Cases, test: Cases) -> Probe:
    """One ridge regression a label on standardised features; its strength by validation error, label by z-score."""
    from sklearn.linear_model import Ridge

    tables, losses = [], []
    train_x, validation_x, test_x = _standardised(train, validation, test)
    for k in range(train.labels.shape[1]):
        known, truth = _known(train.labels[:, k])
        checked, check = _known(validation.labels[:, k])
        centre, scale = (truth.mean(), max(truth.std(), 1e-12)) if len(truth) else (0.0, 1.0)
        table, loss = np.full((len(STRENGTHS), len(test_x)), centre), np.zeros(len(STRENGTHS))
        for i, strength in enumerate(STRENGTHS if len(truth) else ()):
            model = Ridge(alpha=1 / strength).fit(train_x[known], (truth - centre) / scale)
            table[i] = model.predict(test_x) * scale + centre
            if len(check):
                loss[i] = np.mean(np.square(model.predict(validation_x[checked]) - (check - centre) / scale))
        tables.append(table)
        losses.append(loss)
    return _chosen(np.stack(tables, axis=-1), np.mean(losses, axis=0))


def cox(train: Cases, validation: Cases, test: Cases) -> Probe:
    """Cox's proportional hazards on standardised features; C by partial likelihood of the validation cases.

    Args:
        train, validation: labels [n, 2] are the event (0 or 1) and the time to it or to the end of observation; cases
            that lack one of them are left out. With no event among the train cases all are at equal risk.
    """
    train_x, validation_x, test_x = _standardised(train, validation, test)
    known, checked = (~np.isnan(cases.labels).any(axis=1) for cases in (train, validation))
    learned = _RiskSets.of(train.labels[known])
    check = _RiskSets.of(validation.labels[checked])
    table, loss = np.zeros((len(STRENGTHS), len(test_x), 1)), np.zeros(len(STRENGTHS))
    weights = np.zeros(train_x.shape[1])  # the path starts at the strongest regularisation
    for i, strength in enumerate(STRENGTHS if learned.event.any() else ()):
        weights = _hazard_weights(train_x[known], learned, strength, weights)
        table[i, :, 0] = test_x @ weights
        loss[i] = check.loss(validation_x[checked] @ weights)[0] / max(check.event.sum(), 1)
    return _chosen(table, loss)


@dataclass(frozen=True)
class _RiskSets:
    """Who is still observed at each time: order [n] of the cases by falling time, their event [n] in it, and the last
    place [n] of it that has the same time."""

    order: np.ndarray
    event: np.ndarray
    last: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray) -> "_RiskSets":
        """labels: [n, 2], the event and the time."""
        event, time = labels[:, 0] > 0.5, labels[:, 1]
        order = np.argsort(-time, kind="stable")
        falling = -time[order]
        return cls(order, event[order], np.searchsorted(falling, falling, side="right") - 1)

    def loss(self, log_hazard: np.ndarray) -> tuple[float, np.ndarray]:
        """Minus the log partial likelihood of log-hazards [n], with Breslow's ties, and its gradient [n]."""
        if not len(log_hazard):
            return 0.0, np.zeros(0)
        risk = log_hazard[self.order]
        whole = np.logaddexp.accumulate(risk)[self.last]  # of everybody who is observed at that time or longer
        # in logarithms, as a hazard may be too small for the sum that it is divided by
        shares = np.logaddexp.accumulate(np.where(self.event, -whole, -np.inf)[::-1])[::-1]
        first = np.searchsorted(self.last, self.last, side="left")  # place of the first case of the same time
        gradient = np.empty(len(risk))
        gradient[self.order] = np.exp(risk + shares[first]) - self.event
        return float(np.sum((whole - risk)[self.event])), gradient


def _hazard_weights(x: np.ndarray, sets: _RiskSets, strength: float, start: np.ndarray) -> np.ndarray:
    """The weights [D] that minimise strength x loss + half their squared length, as in the logistic regression."""

    def objective(weights):
        loss, gradient = sets.loss(x @ weights)
        return strength * loss + weights @ weights / 2, strength * (gradient @ x) + weights

    options = {"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-8}
    return scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x


def _standardised(train: Cases, *others: Cases) -> list[np.ndarray]:
    centre = train.features.mean(0, dtype=np.float64)
    scale = train.features.std(0, dtype=np.float64)
    scale = np.where(scale > 1e-9, scale, 1.0)  # a feature that never varies stays at zero
    return [(part.features - centre) / scale for part in (train, *others)]


def _known(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known = ~np.isnan(labels)
    return known, labels[known]


def _cross_entropy(log_odds: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean(np.logaddexp(0, log_odds) - truth * log_odds))


def _chosen(tables: np.ndarray, losses: np.ndarray) -> Probe:
    best = int(np.argmin(losses))  # the first, i.e. the strongest regularisation, where several are equal
    return Probe(tables[best], STRENGTHS[best], dict(zip(STRENGTHS, losses.tolist(), strict=True)))
