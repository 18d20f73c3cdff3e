import sys
from pathlib import Path

# importlib import mode has no rootdir on sys.path: what several folders of tests share is imported by name.
sys.path.insert(0, str(Path(__file__).parent))
