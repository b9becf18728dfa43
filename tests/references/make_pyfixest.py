"""Two-way clustered variances by pyfixest 0.60, a second reference: python make_pyfixest.py FOLDER, before make.R.

Needs pyfixest and pandas, in an environment of their own.
"""

import sys
from pathlib import Path

import pandas as pd
import pyfixest

folder = Path(sys.argv[1])
data = pd.read_csv(folder / "inputs.csv")
correction = pyfixest.ssc(k_adj=True, G_adj=True, G_df="conventional")
rows = []
for case in data.case.unique():
    fit = pyfixest.feols("y ~ x + z", data[data.case == case], vcov={"CRV1": "target+source"}, ssc=correction)
    rows += [(case, term, f"{se**2:.17g}") for term, se in fit.se().items()]
pd.DataFrame(rows, columns=["case", "term", "both"]).to_csv(folder / "pyfixest.csv", index=False)
