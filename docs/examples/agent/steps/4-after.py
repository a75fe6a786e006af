"""The next step finds the scratch as it was left, and nothing of the step before."""

import glob
import json

with open("result.json") as file:
    print("the result is still", json.load(file))
print("processes:", len(glob.glob("/proc/[0-9]*")), "(the first one, and this)")
