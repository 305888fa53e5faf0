# %% [markdown]
# # Regression on your data
#
# A CSV file with gaps, text and dates becomes a fitted model in one call, says which columns matter and how far to
# trust it, and predicts new rows after it was saved and loaded.
#
# The file is made here, so that the truth is known: the flow through a borehole (a simulator that ships with the
# package), with two columns that are no numbers and two that say nothing. Put your own file in its
# place. `gp-rangeformer fit FILE --target NAME --out DIR` does the same on the command line, and writes a report.

# %%
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.plots import style
from gp_rangeformer.regression import TableRegression, TableWarning, read_table

style.use_in_notebooks()

# %% tags=["parameters"] small={"ROWS": 150, "NEW_ROWS": 50, "KERNELS": "matern52"}
ROWS, NEW_ROWS = 2000, 1000
KERNELS = "auto"  # compares five

# %% [markdown]
# ## A file
#
# Radius and pressure heads as in the simulator; the rock changes the flow by a factor, and filters clog: 8 % less in
# ten years. The lower aquifer hardly matters in the simulator, and the batch number is made up.

# %%
rng = np.random.default_rng(0)
folder = Path(tempfile.mkdtemp())


def drilled(rows):
    low = np.array([0.05, 100, 63_070, 990, 63.1, 700, 1120, 9855])
    high = np.array([0.15, 50_000, 115_600, 1110, 116, 820, 1680, 12_045])
    x = low + (high - low) * rng.random((rows, 8))
    frame = pd.DataFrame(
        {
            "radius_m": x[:, 0],
            "head_above_m": x[:, 3],
            "head_below_m": x[:, 5],
            "length_m": x[:, 6],
            "conductivity": x[:, 7],
            "rock": rng.choice(["granite", "limestone", "sandstone"], rows, p=[0.3, 0.3, 0.4]),
            "drilled": pd.Timestamp("2010-01-01") + pd.to_timedelta(rng.integers(0, 3652, rows), unit="D"),
            "batch": rng.integers(1, 60, rows),
            "lower_aquifer": x[:, 4],
        }
    )
    flow = datasets.borehole(torch.from_numpy(x)).numpy()
    factor = frame["rock"].map({"granite": 0.85, "limestone": 1.0, "sandstone": 1.1})
    age = (frame["drilled"] - pd.Timestamp("2010-01-01")).dt.days / 3652
    frame["flow"] = flow * factor * (0.92 + 0.08 * age) + 3 * rng.standard_normal(rows)
    return frame


table = drilled(ROWS)
for column in ("conductivity", "rock", "drilled"):  # 3 % of the cells are missing
    table.loc[rng.random(ROWS) < 0.03, column] = None
table.to_csv(folder / "boreholes.csv", index=False)
print((folder / "boreholes.csv").read_text().splitlines()[0])
print(*(folder / "boreholes.csv").read_text().splitlines()[1:4], sep="\n")

# %% [markdown]
# ## The fit
#
# Text is refused unless one says what should become of it: `encode="one-hot"` makes an input of each text. Rows with
# gaps are left out, as `missing="drop"` says ("mean" would fill them). What is left out is said in warnings, which are
# kept as `notes`. Dates are numbers.

# %%
table = read_table(folder / "boreholes.csv")
with warnings.catch_warnings():
    warnings.simplefilter("ignore", TableWarning)
    model = TableRegression.fit(table, target="flow", kernel=KERNELS, encode="one-hot", missing="drop")
print(*model.notes, sep="\n")
for candidate in model.candidates:
    print(f"{candidate.kernel:9} log p(y)/n {candidate.value:.4f} +- {candidate.error:.4f} on {candidate.rows} rows")
print(f"taken: {model.kernel}\n")
print(model.certificate())

# %% [markdown]
# ## What matters
#
# The inverse of each length-scale, in standard deviations of the column. The lower aquifer and the batch number should
# come last, and do.

# %%
relevance = model.relevance()
print(relevance.round(4).to_string())
nothing = ["batch", "lower_aquifer"]
assert relevance[nothing].max() < relevance.drop(nothing).min()

# %% [markdown]
# ## How good is it?
#
# Every row predicted from all others: a score that needs no test rows. A calibrated model has 95 % of the rows inside
# its 95 % intervals, and the probability that it gives to "at most what was observed" is spread evenly.

# %%
scores = model.leave_one_out()
print(scores.summary())
print("the noise that the file was made with: 3")
for coverage in scores.coverage:
    print(f"{coverage.level:.0%} intervals hold {coverage.share:.1%} of the rows")
residual = (scores.targets - scores.mean) / scores.variance.sqrt()

# %% tags=["thumbnail"]
fig, (left, middle, right) = plt.subplots(1, 3, figsize=(8.2, 3.2), width_ratios=(1.1, 1, 1))
bars = relevance.iloc[::-1]
left.barh(bars.index, bars, color=[style.ORANGE if name in nothing else style.BLUE for name in bars.index])
left.set(title="Relevance")
left.grid(visible=False, axis="y")
middle.plot(scores.mean, residual, ".", ms=2, color=style.BLUE)
for level in (-1.96, 1.96):
    middle.axhline(level, color=style.BLACK, lw=0.8, ls="--")
middle.set(xlabel="predicted flow", ylim=(-5, 5), title="Residuals, in deviations")
right.hist(scores.pit, bins=20, range=(0, 1), density=True, color=style.SKY)
right.axhline(1, color=style.BLACK, lw=0.8, ls="--")
right.set(xlabel="predicted probability", title="Calibration", ylim=(0, 2))
plt.show()

# %% [markdown]
# ## Saved, loaded, asked
#
# A folder of two files, safetensors and JSON: nothing in it is executed. Columns are found by name, so their order and
# further ones do not matter; units are the file's. A loaded model predicts the same bits.

# %%
model.save(folder / "model")
print({path.name: path.stat().st_size for path in sorted((folder / "model").iterdir())})
loaded = TableRegression.load(folder / "model")
new = drilled(NEW_ROWS)
answered = loaded.predict(new.drop(columns="flow")[sorted(set(new.columns) - {"flow"})])
print(answered.head(3).round(2))
assert answered.equals(model.predict(new))

error = new["flow"] - answered["mean"]
inside = new["flow"].between(answered["lower95"], answered["upper95"]).mean()
print(f"{NEW_ROWS} new rows: RMSE {np.sqrt((error**2).mean()):.2f}, {inside:.1%} inside the 95 % interval")

# %% [markdown]
# ## What is refused
#
# A prediction that cannot be meant is an error, with the row, the column and a remedy.

# %%
strange = new.head(3).copy()
strange.loc[1, "rock"] = "basalt"
try:
    loaded.predict(strange)
except ValueError as error:
    print(error)
else:
    raise AssertionError("a rock that no training row has was accepted")

# %% [markdown]
# What this does not do: it does not clean data, finds no leaks from the target into a column, and a Gaussian noise of
# one size is assumed. The residuals above are where to look for either.
