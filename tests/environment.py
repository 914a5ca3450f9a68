"""Names of environment variables that one run of the tests has for itself."""

# A folder for traces that several test files need.
TRACES_VARIABLE = "TRAINWRIGHT_TEST_TRACES"
