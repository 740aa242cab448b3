"""Who runs with whom, when: a pure core that decides, and a thin runner that acts."""
