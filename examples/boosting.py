"""LightGBM and XGBoost with any loss as their objective."""

import lightgbm
import numpy as np
import xgboost
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from losslab.integrations.boosting import BoostingObjective


def main() -> float:
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, random_state=0)
    objective = BoostingObjective("encouraging", num_classes=10)
    right = []
    for model, raw in (
        (lightgbm.LGBMClassifier(objective=objective, n_estimators=30, verbose=-1), "raw_score"),
        (xgboost.XGBClassifier(objective=objective, n_estimators=30), "output_margin"),
    ):
        scores = model.fit(X, y).predict(X_test, **{raw: True})
        p = objective.probabilities(scores)
        right.append(float((p.argmax(1) == y_test).mean()))
        print(f"{type(model).__name__}: test accuracy {100 * right[-1]:.1f} %")
    return float(np.min(right))


if __name__ == "__main__":
    main()
