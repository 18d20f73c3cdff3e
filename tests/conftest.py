import pytest


@pytest.fixture(scope="session")
def say(request):
    """Function: print a line even if output is captured, for measurements of passing tests."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def line(text):
        with capture.global_and_fixture_disabled():
            print(f"\n{text}", end="", flush=True)

    return line
