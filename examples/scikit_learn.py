"""scikit-learn: a grid search over losses in a pipeline."""

from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from losslab.integrations.sklearn import LossClassifier


def main() -> float:
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, random_state=0)
    model = make_pipeline(StandardScaler(), LossClassifier(max_iter=15, random_state=0))
    losses = ["cross_entropy", "encouraging", "mixed(focus=0.3)"]
    search = GridSearchCV(model, {"lossclassifier__loss": losses}, cv=3).fit(X, y)
    right = float(search.score(X_test, y_test))
    print(f"{search.best_params_['lossclassifier__loss']}: test accuracy {100 * right:.1f} %")
    return right


if __name__ == "__main__":
    main()
