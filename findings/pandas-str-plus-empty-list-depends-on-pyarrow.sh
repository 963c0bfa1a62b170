#!/usr/bin/env bash
# pandas 3 keeps text in a `str` dtype, which pyarrow stores if it happens to be installed. Adding a list of texts to such
# a column works either way, but an empty column plus an empty list is an empty column without pyarrow and a TypeError
# with it, since an empty list counts as float64 there. A table that is filtered down to no rows therefore breaks a
# program only on machines where some other package (MLflow, for one) has brought pyarrow.
#
# Seen: pandas 3.1.1, numpy 2.4.6
#   without pyarrow:     one row: ['a x'], no rows: []
#   pyarrow 25.0.1:      one row: ['a x'], no rows: TypeError
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet numpy==2.4.6 pandas==3.1.1
cat > finding.py <<'EOF'
import importlib.util
import sys

import pandas as pd

column = pd.Series(["a"])
seen = {}
for name, rows, more in (("one row", column, [" x"]), ("no rows", column[:0], [])):
    try:
        seen[name] = (rows + more).tolist()
    except TypeError:
        seen[name] = "TypeError"
has_pyarrow = importlib.util.find_spec("pyarrow") is not None
where = f"pyarrow {__import__('pyarrow').__version__}:" if has_pyarrow else "without pyarrow:"
print(f"  {where:<20} one row: {seen['one row']}, no rows: {seen['no rows']}")
sys.exit(seen != {"one row": ["a x"], "no rows": "TypeError" if has_pyarrow else []})
EOF
venv/bin/python -c 'import numpy, pandas; print(f"pandas {pandas.__version__}, numpy {numpy.__version__}")'
venv/bin/python finding.py
venv/bin/pip install --quiet pyarrow==25.0.1
venv/bin/python finding.py
