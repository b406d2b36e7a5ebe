import sys
from pathlib import Path

# Tiny models and servers lie beside the tests of the model.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
