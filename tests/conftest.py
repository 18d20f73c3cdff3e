import sys
from pathlib import Path

import pytest

# importlib import mode has no rootdir on sys.path: what several folders of tests share is imported by name.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def say(request):
    """Function: print a line, whether output is captured or not: figures that a passing test should not keep back."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def line(text):
        with capture.global_and_fixture_disabled():
            print(f"\n{text}", end="", flush=True)

    return line
