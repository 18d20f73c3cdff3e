"""The HFTitanJob operator: a pure core, adapters for clusters, and the command line. Runs with torch absent."""
