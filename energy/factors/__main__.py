"""`python -m energy.factors` brings versions.csv up to date after a table was changed."""

from energy.factors.tables import write_versions

if __name__ == "__main__":
    stale = write_versions()
    print("versions.csv: " + (", ".join(stale) if stale else "nothing had changed"))
