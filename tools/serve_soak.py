"""Asks a running `flint serve` for a long time, eight at a time, three in ten hanging up, and says what became of the server.

    flint serve tiny=MODEL --port 8080 --cache-memory 16 --quiet
    python3 tools/serve_soak.py 127.0.0.1:8080 tiny --pid PID [--minutes 10]

Prints a line a minute: requests by status, resident memory, open files, pages in use. Ends with 1 if after the first fifth of
the time memory grew by 2 % and more than two huge pages of 2 MiB, files that are open at rest are not as many as in the
beginning, an answer's status was neither 200 nor 429, a text differs from the one that its request had before, or something
is left running at the end.
Needs nothing but Python's library.
"""

import argparse
import collections
import json
import random
import sys
import threading
import time

from serve_load import Http, key, memory, metric, open_files, request, text_of, wait_until_idle

# KiB in which the system may give memory.
HUGE_PAGE = 2048


class Soak:
    def __init__(self, args):
        self.args = args
        self.lock = threading.Lock()
        self.statuses = collections.Counter()
        self.texts = {}
        self.faults = []
        self.end = time.monotonic() + 60 * args.minutes

    def ask(self, rng, http):
        """One request over a connection, which is returned if it can be used again."""
        body = {**request(self.args.model, rng), "stream": rng.random() < 0.5}
        hangs_up = rng.random() < 0.3
        http = http or Http(self.args.address)
        http.send("POST", "/v1/completions", json.dumps(body).encode())
        if hangs_up and rng.random() < 0.5:
            # Before anything has come.
            http.close()
            self.count("hung up")
            return None
        status, headers = http.head()
        if hangs_up and status == 200 and body["stream"]:
            pieces = http.pieces(headers)
            for _ in range(rng.randrange(4)):
                next(pieces, None)
            http.close()
            self.count("hung up")
            return None
        self.count(status)
        if status != 200:
            b"".join(http.pieces(headers))
            return http
        text = text_of(http.pieces(headers), body["stream"])
        with self.lock:
            if self.texts.setdefault(key(body), text) != text:
                self.faults.append(f"{body} said {text!r}, and before {self.texts[key(body)]!r}")
        return http

    def count(self, status):
        with self.lock:
            self.statuses[status] += 1

    def client(self, number):
        rng, http = random.Random(self.args.seed * 1000 + number), None
        while time.monotonic() < self.end:
            try:
                http = self.ask(rng, http)
            except Exception as error:  # Counted: there must be none.
                with self.lock:
                    self.faults.append(repr(error))
                http = None

    def run(self):
        pid, address = self.args.pid, self.args.address
        begin = time.monotonic()
        wait_until_idle(address)
        files_before = open_files(pid)
        threads = [threading.Thread(target=self.client, args=[number]) for number in range(8)]
        for thread in threads:
            thread.start()
        after_a_fifth, next_line = None, begin
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.2)
            now = time.monotonic()
            if after_a_fifth is None and now >= begin + 12 * self.args.minutes:
                after_a_fifth = memory(pid)
            if now >= next_line:
                next_line += 60
                with self.lock:
                    counts = dict(self.statuses)
                pages = int(metric(address, "flint_kv_blocks_used"))
                print(f"{now - begin:6.0f} s: {counts}, {memory(pid)} KiB, {open_files(pid)} files, {pages} pages", flush=True)
        wait_until_idle(address)
        # A connection's end is noticed, not told.
        time.sleep(1)
        files, at_end = open_files(pid), memory(pid)
        growth = 100 * (at_end / after_a_fifth - 1)
        print(f"requests: {dict(self.statuses)}")
        print(f"memory after a fifth {after_a_fifth} KiB, at the end {at_end} KiB ({growth:+.2f} %)")
        print(f"open files at rest: {files_before} before, {files} after; {len(self.faults)} faults")
        for fault in self.faults[:5]:
            print(f"fault: {fault}")
        others = set(self.statuses) - {200, 429, "hung up"}
        is_steady = growth < 2 or at_end - after_a_fifth <= 2 * HUGE_PAGE
        return not self.faults and not others and is_steady and files == files_before


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", help="HOST:PORT")
    parser.add_argument("model")
    parser.add_argument("--pid", type=int, required=True, help="of the server, whose memory is looked at")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    sys.exit(0 if Soak(parser.parse_args()).run() else 1)


if __name__ == "__main__":
    main()
