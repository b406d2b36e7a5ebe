import sys
from pathlib import Path

# The makers of tiny models lie beside the tests.
sys.path.insert(0, str(Path(__file__).parent))
