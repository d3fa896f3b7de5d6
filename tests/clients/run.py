#!/usr/bin/env python3
"""Runs the tests with real clients and says how many held.

    run.py sdks|openclaw|n8n ...

FAREBOX_BIN is the program to test (default: the debug build), CLIENTS_DIR the folder that
`install.sh` filled.
"""

import sys
import unittest

from harness import FAREBOX_BIN


def main():
    if not FAREBOX_BIN.exists():
        sys.exit(f"There is no {FAREBOX_BIN}: run `cargo build` first, or set FAREBOX_BIN.")
    names = [f"test_{name}" for name in sys.argv[1:] or ("sdks", "openclaw", "n8n")]
    suite = unittest.defaultTestLoader.loadTestsFromNames(names)
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(suite)
    # A test with parts may fail more than once, and a failed set-up belongs to no test.
    troubles = result.failures + result.errors
    failed = len({str(getattr(test, "test_case", test)) for test, _ in troubles})
    passed = max(result.testsRun - failed, 0)
    print(f"clients: {passed} passed, {failed} failed", flush=True)
    sys.exit(0 if result.wasSuccessful() and passed else 1)


if __name__ == "__main__":
    main()
