"""What was asked for: some work, a result in the scratch."""

import collections
import json

text = "the agent counts the words that the agent was asked to count"
count = collections.Counter(text.split()).most_common(2)
with open("result.json", "w") as file:
    json.dump(dict(count), file)
print("counted", len(text.split()), "words")
