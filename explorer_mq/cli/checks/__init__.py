"""What ``doctor`` looks at: each check says ok, warn or fail, and what to do about it."""
