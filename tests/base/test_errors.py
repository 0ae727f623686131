"""A user's mistake is told from a mistake of the code's by its class alone."""

import cachedlrm
from cachedlrm.base.errors import UserError


def test_a_mistake_of_the_user_is_no_mistake_of_the_code():
    assert str(UserError("name another file")) == "name another file"
    for mistake in (ValueError, OSError, RuntimeError, AssertionError):  # what code raises and catches
        assert not issubclass(UserError, mistake)


def test_the_package_has_it():
    assert cachedlrm.UserError is UserError
