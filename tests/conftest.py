import pytest


@pytest.fixture(scope="session")
def say(request):
    """Function: print a line, whether output is captured or not: figures that a passing test should not keep back."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def line(text):
        with capture.global_and_fixture_disabled():
            print(f"\n{text}", end="", flush=True)

    return line
