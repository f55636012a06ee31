"""``python -m del_core.audit.report DIRECTORY``: render the page anew from audit.json."""

import sys
from pathlib import Path

from del_core.audit.report.write import write_page

write_page(Path(sys.argv[1]))
