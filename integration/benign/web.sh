#!/bin/sh
# nginx as its package sets it up: a master as root, workers as another user, port 80.
nginx -t 2>&1 | tail -n 2
nginx || { cat /var/log/nginx/error.log; exit 1; }
python3 - <<'PYTHON'
import time, urllib.request
for _ in range(50):
    try:
        text = urllib.request.urlopen("http://127.0.0.1/", timeout=5).read().decode()
        break
    except OSError:
        time.sleep(0.1)
print("web", "nginx" in text)
PYTHON
ps -o user= -C nginx 2>/dev/null | sort | uniq -c | tr -s ' '
nginx -s stop
