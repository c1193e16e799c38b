"""For the processes that tests start: Python imports this file as it starts.

transformers imports torchao wherever it is installed, a fifth of the time that lvspec takes to start. Few
users have it, and the tests of its weights start processes of their own.
"""

import sys

sys.modules["torchao"] = None  # type: ignore[assignment]
