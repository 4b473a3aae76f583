# SPDX-License-Identifier: Apache-2.0
"""The tests, as a package so that they can share helpers: ``from tests.cli.support import run``."""
