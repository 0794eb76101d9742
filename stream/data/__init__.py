"""Packaged data: real CDNOW orders for the demo, the shipped tag definitions, and the page.

``cdnow.csv.gz`` is the CDNOW master data set: all 23,570 customers of an online music shop
who first ordered in the first quarter of 1997, and their 69,659 orders until 1998-06-30.
Columns: ``user,date,cds,value,sample`` (``value`` in US dollars; ``sample`` is 1 for the usual
tenth of the customers). Published for research and teaching at brucehardie.com (note 026) and
repackaged from `lifetimes` 0.11.3 (MIT). Please cite: Fader, P. S. and Hardie, B. G. S. (2001),
"Forecasting Repeat Sales at CDNOW: A Case Study", Interfaces 31 (3), part 2, S94-S107.
"""

from pathlib import Path
from typing import Final

CDNOW: Final = Path(__file__).with_name("cdnow.csv.gz")
TAGS: Final = Path(__file__).with_name("tags.yaml")
TEMPLATES: Final = {
    path.stem: path for path in sorted(Path(__file__).with_name("templates").glob("*.yaml"))
}
"""Further definitions to start from, by name."""
PAGE: Final = Path(__file__).with_name("page")
