import sys
from pathlib import Path

# Oracles lie beside the tests that use them.
sys.path.insert(0, str(Path(__file__).parent))
