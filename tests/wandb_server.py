"""A stand-in W&B server for tests: what wandb 0.31's own SDK, CLI and Api ask of a server.

    python tests/wandb_server.py --port 8123      # 0: any free port, printed
    export WANDB_BASE_URL=http://127.0.0.1:8123 WANDB_API_KEY=<40 hex digits>

It serves init, log, finish and resume; sweeps (grid, random, run_cap, nested parameters) and their
agents, with stop, and requeue of preempted runs; the Api with filters and pages of history; tables
and `wandb sync`. Everything lives in memory, on loopback only, with no authentication. In a test:

    from wandb_server import API_KEY, wandb_server    # a module-scoped fixture; set the variables
    wandb_server.runs[entity, project, run_id]        # a Run: a dict with history() and config()
    wandb_server.fail = lambda request: 503           # an outage; None ends it
"""
from __future__ import annotations

import argparse
import base64
import gzip
import itertools
import json
import math
import random
import re
import string
import threading
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Callable, Iterator
from urllib.parse import unquote, urlsplit

import pytest
import yaml

ENTITY, API_KEY = "tester", "0123456789" * 4
DEAD = ("finished", "failed", "crashed", "killed")
LAST_PAGE = {"endCursor": None, "hasNextPage": False}


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")


def new_id() -> str:
    return "".join(random.choices(string.ascii_lowercase + string.digits, k=8))


def opaque(kind: str, *parts: str) -> str:
    """GraphQL's opaque id of a thing; from_opaque gives the parts back."""
    return base64.b64encode(":".join([kind, *parts]).encode()).decode()


def from_opaque(text: str) -> list[str]:
    return base64.b64decode(text).decode().split(":")[1:]


def connection(nodes: list[dict], page: dict = LAST_PAGE, first: int = 0) -> dict:
    """A page of nodes; the client asks for what follows its last cursor."""
    return {"edges": [{"node": n, "cursor": str(i)} for i, n in enumerate(nodes, first + 1)],
            "pageInfo": page}


def thin(rows: list, n: int | None) -> list:
    """At most n rows, evenly chosen, as the real server samples a history."""
    n = n or 500
    return rows if len(rows) <= n else [rows[i * (len(rows) - 1) // (n - 1)] for i in range(n)]


class Run(dict):
    """One run. lines[file][offset] is a raw line, as the file stream sends them."""

    def __init__(self, entity: str, project: str, name: str, **more):
        super().__init__(
            entity=entity, project=project, name=name, displayName=name, config={}, summary={},
            tags=[], group=None, jobType=None, notes=None, sweep=None, args=None, state="pending",
            stopped=False, preempting=False, streamed=False, exitcode=None, created=now(),
            heartbeat=now(), lines={"wandb-history.jsonl": {}, "wandb-events.jsonl": {}})
        self.update(more)

    def raw(self, file: str = "wandb-history.jsonl") -> list[str]:
        return [line for _, line in sorted(self["lines"].get(file, {}).items())]

    def history(self) -> list[dict]:
        return [json.loads(line) for line in self.raw()]

    def config(self) -> dict:
        return {k: v["value"] for k, v in self["config"].items() if k != "_wandb"}

    def history_keys(self) -> dict:
        rows, keys = self.history(), {}
        for key, value in itertools.chain.from_iterable(row.items() for row in rows):
            kind = "number" if isinstance(value, (int, float)) else "string"
            keys.setdefault(key, {"typeCounts": [{"type": kind, "count": 0}], "monotonic": False})
            keys[key]["typeCounts"][0]["count"] += 1
        return {"sets": [], "keys": keys, "lastStep": rows[-1]["_step"] if rows else -1}

    def node(self) -> dict:
        """All that any Run fragment of wandb 0.31 asks for."""
        history, events = self.raw(), self.raw("wandb-events.jsonl")
        same = {k: self[k] for k in ("name", "displayName", "state", "group", "jobType", "tags",
                                     "notes", "stopped", "exitcode")}
        return same | {
            "id": opaque("Run", self["entity"], self["project"], self["name"]),
            "sweepName": self["sweep"], "config": json.dumps(self["config"]),
            "summaryMetrics": json.dumps(self["summary"]), "systemMetrics": "{}",
            "description": self["notes"], "commit": None, "readOnly": False, "projectId": "1",
            "createdAt": self["created"], "heartbeatAt": self["heartbeat"],
            "historyLineCount": len(history), "eventsLineCount": len(events),
            "logLineCount": len(self.raw("output.log")), "historyKeys": self.history_keys(),
            "historyTail": json.dumps(history[-1:]), "eventsTail": json.dumps(events[-1:]),
            "user": {"name": ENTITY, "username": ENTITY}, "shouldStop": self["stopped"],
            "running": self["state"] == "running", "failed": self["state"] == "failed",
            "wandbConfig": json.dumps({"t": 1} if self["streamed"] else {}),
            "project": project_node(self["entity"], self["project"]), "files": connection([])}


def project_node(entity: str, project: str) -> dict:
    return {"id": opaque("Project", entity, project), "name": project, "internalId": "1",
            "readOnly": False, "entityName": entity,
            "entity": {"id": opaque("Entity", entity), "name": entity}}


class Sweep:
    """A sweep's config and what of it has been handed out. Grid and random search only."""

    def __init__(self, entity: str, project: str, name: str, text: str):
        self.entity, self.project, self.name, self.created = entity, project, name, now()
        self.state, self.launched, self.queue = "RUNNING", 0, None
        self.configure(text)

    def configure(self, text: str) -> None:
        self.text, self.config = text, yaml.safe_load(text)

    def leaves(self, parameters: dict, path: tuple = ()) -> Iterator[tuple[tuple, dict]]:
        for name, p in parameters.items():
            if "parameters" in p:
                yield from self.leaves(p["parameters"], (*path, name))
            else:
                yield (*path, name), p

    @staticmethod
    def draw(p: dict):
        if "value" in p or "values" in p:
            return random.choice(p.get("values", [p.get("value")]))
        low, high = p["min"], p["max"]
        if p.get("distribution") == "log_uniform_values":
            return math.exp(random.uniform(math.log(low), math.log(high)))
        whole = isinstance(low, int) and isinstance(high, int)
        return random.randint(low, high) if whole else random.uniform(low, high)

    def next(self) -> dict | None:
        """The next run's arguments, {name: {"value": v}}, nested as in the sweep; None: no more."""
        leaves = list(self.leaves(self.config["parameters"]))
        if self.launched >= self.config.get("run_cap", math.inf):
            return None
        if self.config["method"] == "grid":
            if self.queue is None:
                self.queue = itertools.product(*[p.get("values", [p.get("value")])
                                                 for _, p in leaves])
            values = next(self.queue, None)
        else:
            values = [self.draw(p) for _, p in leaves]
        if values is None:
            return None
        self.launched += 1
        args: dict = {}
        for ((top, *rest), _), value in zip(leaves, values):
            if not rest:
                args[top] = {"value": value}
                continue
            group = args.setdefault(top, {"value": {}})["value"]
            for part in rest[:-1]:
                group = group.setdefault(part, {})
            group[rest[-1]] = value
        return args


COMPARE = {"$eq": lambda a, b: a == b, "$ne": lambda a, b: a != b, "$in": lambda a, b: a in b,
           "$gt": lambda a, b: a is not None and a > b, "$lt": lambda a, b: a is not None and a < b,
           "$gte": lambda a, b: a is not None and a >= b,
           "$lte": lambda a, b: a is not None and a <= b,
           "$exists": lambda a, b: (a is not None) == b,
           "$regex": lambda a, b: bool(re.search(b, str(a)))}


def matches(run: Run, filters: dict) -> bool:
    """Whether a run passes the MongoDB-like filters of Api.runs."""
    for key, want in filters.items():
        if key in ("$and", "$or"):
            ok = (all if key == "$and" else any)(matches(run, f) for f in want)
        else:
            got = run
            path = key.replace("display_name", "displayName").replace("summary_metrics", "summary")
            for part in path.split("."):
                got = got.get(part) if isinstance(got, dict) else None
            if isinstance(got, dict) and "value" in got:
                got = got["value"]
            if isinstance(want, dict):
                ok = all(COMPARE[name](got, x) for name, x in want.items())
            else:
                ok = want in got if isinstance(got, list) else got == want
        if not ok:
            return False
    return True


class Server:
    """The state, and one method op_<Name> for each GraphQL operation."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.runs: dict[tuple[str, str, str], Run] = {}
        self.sweeps: dict[tuple[str, str, str], Sweep] = {}
        self.agents: dict[str, Sweep] = {}
        self.files: dict[str, bytes] = {}
        self.artifacts: dict[str, dict] = {}
        self.fail: Callable[[str], int | None] | None = None
        self.unknown: list[str] = []        # operations that were asked for and are not here
        self.bodies: list[bytes] = []       # of all requests: what a client gave away
        self.url = ""

    def graphql(self, query: str, v: dict) -> dict:
        found = re.search(r"\b(?:query|mutation)\s+(\w+)", query)
        if "__type(" in query or "__schema" in query:
            return {name: {"name": name, "fields": [], "inputFields": [], "enumValues": []}
                    for name in re.findall(r"(\w+)\s*:\s*__type", query)}
        # Api.runs(lazy=True) leaves out config and summary, and asks for them one run at a time.
        self.light = "LightweightRunFragment" in query
        name = found.group(1) if found else "Viewer"
        if not hasattr(self, "op_" + name):
            self.unknown.append(name)
            raise KeyError(name)
        return getattr(self, "op_" + name)(v)

    # -- who, and runs

    def op_Viewer(self, v: dict) -> dict:
        return {"viewer": {
            "id": opaque("User", ENTITY), "entity": ENTITY, "username": ENTITY, "name": ENTITY,
            "email": "tester@example.com", "flags": "{}", "admin": False, "deletedAt": None,
            "apiKeys": {"edges": []}, "teams": connection([{"name": ENTITY}]),
            "organizations": []}}

    op_GetViewer = op_GetDefaultEntity = op_Viewer

    def op_ServerFeaturesQuery(self, v: dict) -> dict:
        return {"serverInfo": {"features": []}}

    def op_OrgFeatureFlags(self, v: dict) -> dict:
        return {"organization": {"featureFlags": []}}

    def op_OrganizationCoreWeaveOrganizationID(self, v: dict) -> dict:
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    def op_UpsertBucket(self, v: dict) -> dict:
        key = (v.get("entity") or ENTITY, v.get("project") or "uncategorized",
               v.get("name") or new_id())
        if v.get("id"):
            key = tuple(from_opaque(v["id"]))
        inserted = key not in self.runs
        run = self.runs.setdefault(key, Run(*key))
        for given, kept in (("groupName", "group"), ("displayName", "displayName"),
                            ("notes", "notes"), ("jobType", "jobType"), ("tags", "tags"),
                            ("sweep", "sweep")):
            if v.get(given):
                run[kept] = v[given]
        for given, kept in (("config", "config"), ("summaryMetrics", "summary")):
            if v.get(given):
                run[kept] = json.loads(v[given])
        run.update(state=v.get("state") or "running", heartbeat=now())
        return {"upsertBucket": {"bucket": run.node(), "inserted": inserted}}

    def run(self, v: dict) -> Run | None:
        return self.runs.get((v.get("entity") or v.get("entityName") or ENTITY,
                              v.get("project") or v.get("projectName"),
                              v.get("name") or v.get("run") or v.get("runId")))

    def op_RunResumeStatus(self, v: dict) -> dict:
        run = self.run(v)
        return {"model": {"id": "m", "name": v["project"], "bucket": run and run.node(),
                          "entity": {"id": "e", "name": v.get("entity") or ENTITY}}}

    def op_RunStoppedStatus(self, v: dict) -> dict:
        run = self.run(v)
        return {"project": {"run": {"stopped": bool(run and run["stopped"])}}}

    def op_StopRun(self, v: dict) -> dict:
        self.runs[tuple(from_opaque(v["id"]))]["stopped"] = True
        return {"stopRun": {"success": True}}

    def op_CreateRunFiles(self, v: dict) -> dict:
        base = f"{self.url}/storage/{v['entity']}/{v['project']}/{v['run']}/"  # must be absolute
        return {"createRunFiles": {"runID": opaque("Run", v["run"]), "uploadHeaders": [],
                                   "files": [{"name": n, "uploadUrl": base + n}
                                             for n in v["files"]]}}

    def file_stream(self, entity: str, project: str, name: str, body: dict) -> tuple[int, dict]:
        run = self.runs.get((entity, project, name))
        if run is None:
            return 404, {"error": "no such run"}
        run.update(heartbeat=now(), streamed=True)
        if run["state"] not in DEAD:
            run["state"] = "running"
        for file, chunk in (body.get("files") or {}).items():
            for i, line in enumerate(chunk.get("content", []), chunk.get("offset", 0)):
                if file == "wandb-summary.json":
                    run["summary"] = json.loads(line)
                else:
                    run["lines"].setdefault(file, {})[i] = line
        run["preempting"] |= bool(body.get("preempting"))
        if body.get("complete"):
            run["exitcode"] = code = body.get("exitcode", 0)
            run["state"] = ("finished" if not code else
                            "preempted" if run["preempting"] else "failed")
        return 200, {"exitcode": None, "limits": {}} | ({"stopped": True} if run["stopped"] else {})

    # -- sweeps and agents

    def op_UpsertSweep(self, v: dict) -> dict:
        if v.get("id"):
            sweep = next(s for s in self.sweeps.values() if opaque("Sweep", s.name) == v["id"])
            if v.get("config"):
                sweep.configure(v["config"])
        else:
            key = (v.get("entityName") or ENTITY, v.get("projectName") or "uncategorized", new_id())
            sweep = self.sweeps[key] = Sweep(*key, v["config"])
        sweep.state = v.get("state") or sweep.state
        return {"upsertSweep": {"configValidationWarnings": [], "sweep": {
            "name": sweep.name, "project": project_node(sweep.entity, sweep.project)}}}

    def op_GetSweep(self, v: dict) -> dict:
        s = self.sweeps.get((v["entity"], v["project"], v.get("name") or v.get("sweep")))
        if s is None:
            return {"project": {"sweep": None}}
        runs = [r.node() | {"sampledHistory": [[]]} for r in self.runs.values()
                if r["sweep"] == s.name]
        return {"project": {"sweep": {
            "id": opaque("Sweep", s.name), "name": s.name, "displayName": s.config.get("name"),
            "method": s.config["method"], "state": s.state, "description": None, "config": s.text,
            "createdAt": s.created, "heartbeatAt": now(), "updatedAt": now(),
            "earlyStopJobRunning": False, "bestLoss": None, "controller": None, "scheduler": None,
            "runCount": len(runs), "runCountExpected": None, "priorRuns": None,
            "user": {"name": ENTITY, "username": ENTITY}, "runs": connection(runs)}}}

    op_SweepWithRuns = op_GetSweepState = op_GetSweepLegacy = op_Sweep = op_GetSweep

    def op_CreateAgent(self, v: dict) -> dict:
        sweep = self.sweeps[v["entityName"], v["projectName"], v["sweep"]]
        if sweep.state in ("FINISHED", "CANCELED"):
            raise ValueError(f"Sweep {sweep.name} is not running")
        agent = new_id()
        self.agents[agent] = sweep
        return {"createAgent": {"agent": {"id": agent}}}

    def op_Heartbeat(self, v: dict) -> dict:
        sweep, alive = self.agents[v["id"]], json.loads(v["runState"])
        return {"agentHeartbeat": {"agent": {"id": v["id"]},
                                   "commands": json.dumps(self.commands(sweep, alive))}}

    def commands(self, sweep: Sweep, alive: dict) -> list[dict]:
        """What an agent is told: stop a run, or, where it is free, the next run or to exit."""
        mine = [r for r in self.runs.values() if r["sweep"] == sweep.name]
        if sweep.state == "CANCELED":
            return [{"type": "exit"}]
        if alive or sweep.state == "PAUSED":
            return [{"type": "stop", "run_id": r["name"]} for r in mine
                    if r["name"] in alive and r["stopped"]]
        preempted = [r for r in mine if r["state"] == "preempted"]
        if preempted:  # requeued runs come before new ones
            run = preempted[0]
            run.update(state="pending", preempting=False, exitcode=None)
            return [{"type": "resume", "run_id": run["name"], "args": run["args"],
                     "program": sweep.config.get("program")}]
        args = sweep.next() if sweep.state == "RUNNING" else None
        if args is None:
            sweep.state = "FINISHED"
            return [{"type": "exit"}]
        key = (sweep.entity, sweep.project, new_id())
        self.runs[key] = Run(*key, sweep=sweep.name, config=dict(args), args=args)
        return [{"type": "run", "run_id": key[2], "args": args,
                 "program": sweep.config.get("program")}]

    # -- the public Api

    def op_Runs(self, v: dict) -> dict:
        if not any(key[:2] == (v["entity"], v["project"]) for key in (*self.runs, *self.sweeps)):
            return {"project": None}            # nobody has ever sent anything to such a project
        filters = json.loads(v.get("filters") or "{}") or {}
        found = [r for r in self.runs.values()
                 if (r["entity"], r["project"]) == (v["entity"], v["project"])
                 and matches(r, filters)]
        if (v.get("order") or "").startswith("-"):
            found.reverse()
        first = int(v.get("cursor") or 0)
        last = first + (v.get("perPage") or 50)
        heavy = ("config", "summaryMetrics", "systemMetrics", "historyKeys") if self.light else ()
        nodes = [{k: x for k, x in r.node().items() if k not in heavy} for r in found[first:last]]
        page = {"endCursor": str(last), "hasNextPage": last < len(found)}
        return {"project": project_node(v["entity"], v["project"])
                | {"runCount": len(found), "runs": connection(nodes, page, first)}}

    def op_Run(self, v: dict) -> dict:
        run = self.run(v)
        return {"project": {"run": run and run.node()}}

    op_RunState = op_QueryRunInfo = op_RunHistoryKeys = op_Run

    def op_RunFiles(self, v: dict) -> dict:
        base = f"/storage/{v['entity']}/{v['project']}/{v['name']}/"
        names = [path[len(base):] for path in self.files if path.startswith(base)]
        nodes = [{"id": opaque("File", n), "name": n, "url": self.url + base + n, "md5": "",
                  "directUrl": self.url + base + n, "sizeBytes": str(len(self.files[base + n])),
                  "mimetype": "", "updatedAt": now()}
                 for n in names if not v.get("fileNames") or n in v["fileNames"]]
        return {"project": {"internalId": "1", "run": {"fileCount": len(nodes),
                                                       "files": connection(nodes)}}}

    def op_RunFullHistory(self, v: dict) -> dict:
        run = self.run(v)
        return {"project": {"run": {"history": thin(run.raw(), v.get("samples")),
                                    "events": run.raw("wandb-events.jsonl")}}}

    def op_HistoryPage(self, v: dict) -> dict:
        rows = [line for line in self.run(v).raw()
                if v["minStep"] <= json.loads(line)["_step"] < v["maxStep"]]
        return {"project": {"run": {"history": rows[:v["pageSize"]]}}}

    def sampled(self, run: Run, spec: str | dict) -> list[dict]:
        spec = json.loads(spec) if isinstance(spec, str) else spec
        steps = range(spec.get("minStep", 0), spec.get("maxStep", 1 << 62))
        rows = [{k: row[k] for k in spec["keys"]} for row in run.history()
                if row["_step"] in steps and all(k in row for k in spec["keys"])]
        return thin(rows, spec.get("samples"))

    def op_RunSampledHistory(self, v: dict) -> dict:
        specs = v["specs"] if "specs" in v else [v["spec"]]
        return {"project": {"run": {"sampledHistory": [self.sampled(self.run(v), s)
                                                       for s in specs]}}}

    op_SampledHistoryPage = op_RunSampledHistory

    def op_RunParquetHistory(self, v: dict) -> dict:  # nothing is exported: all of it is live
        return {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": None}}}}

    # -- artifacts: only the upload, which a wandb.Table needs

    def op_ArtifactType(self, v: dict) -> dict:
        return {"project": {"artifact": None}}

    def op_CreateArtifact(self, v: dict) -> dict:
        i = v["input"]
        key = opaque("Artifact", i["entityName"], i["projectName"], i["artifactCollectionName"],
                     i["digest"])
        art = self.artifacts.setdefault(key, {"id": key, "name": i["artifactCollectionName"],
                                              "run": i.get("runName"), "state": "PENDING"})
        return {"createArtifact": {"artifact": {"id": key, "state": art["state"],
                                                "artifactSequence": {"latestArtifact": None}}}}

    def op_CreateArtifactManifest(self, v: dict) -> dict:
        url = f"{self.url}/storage/artifacts/{v['artifactID']}/{v['name']}"
        return {"createArtifactManifest": {"artifactManifest": {
            "id": opaque("Manifest", v["artifactID"]),
            "file": {"id": "f", "uploadUrl": url, "uploadHeaders": []}}}}

    def op_CreateArtifactFiles(self, v: dict) -> dict:
        nodes = [{"storagePath": f["md5"], "uploadHeaders": [], "uploadMultipartUrls": None,
                  "uploadUrl": f"{self.url}/storage/artifacts/{f['artifactID']}/{f['name']}",
                  "artifact": {"id": f["artifactID"]}} for f in v["input"]["artifactFiles"]]
        return {"createArtifactFiles": {"files": connection(nodes)}}

    def op_CommitArtifact(self, v: dict) -> dict:
        self.artifacts[v["artifactID"]]["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": v["artifactID"], "digest": ""}}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: Server

    def log_message(self, *args) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            raw = b""
            while n := int(self.rfile.readline().split(b";")[0], 16):
                raw += self.rfile.read(n)
                self.rfile.readline()
            self.rfile.readline()
        else:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw

    def reply(self, code: int, content: dict | bytes = b"") -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def answer(self) -> None:
        state, path, raw = self.server_state, urlsplit(self.path).path, self.body()
        state.bodies.append(raw)
        request = path + (" " + json.loads(raw)["query"] if path == "/graphql" else "")
        if state.fail and not path.startswith("/_") and (code := state.fail(request)):
            return self.reply(code, {"error": "an injected fault"})
        if path == "/graphql":
            asked = json.loads(raw)
            with state.lock:
                try:
                    data = state.graphql(asked["query"], asked.get("variables") or {})
                except Exception as e:  # a client sees what a server would say
                    code = 404 if isinstance(e, KeyError) else 400
                    return self.reply(code, {"data": None, "errors": [{"message": repr(e)}]})
            return self.reply(200, {"data": data})
        if m := re.fullmatch(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", path):
            with state.lock:
                return self.reply(*state.file_stream(*map(unquote, m.groups()), json.loads(raw)))
        if path.startswith("/storage/"):
            if self.command == "PUT":
                state.files[path] = raw
                return self.reply(200)
            return self.reply(200 if path in state.files else 404, state.files.get(path, b""))
        return self.control(path, urlsplit(self.path).query)

    def control(self, path: str, query: str) -> None:
        """For a server in another process: /_dump, /_stop?<run id>, /_fail?503 (0 ends it)."""
        state = self.server_state
        if path == "/_dump":
            return self.reply(200, {"runs": list(state.runs.values()), "unknown": state.unknown,
                                    "sweeps": {s.name: s.state for s in state.sweeps.values()},
                                    "files": list(state.files)})
        if path == "/_stop":
            for run in state.runs.values():
                run["stopped"] |= run["name"] == query
        elif path == "/_fail":
            code = int(query)
            state.fail = (lambda request: code) if code else None
        self.reply(200 if path in ("/", "/_stop", "/_fail") else 404, {})

    do_GET = do_POST = do_PUT = answer


class Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        pass  # a client that was killed in the middle of a request is what tests do


def start(port: int = 0) -> tuple[ThreadingHTTPServer, Server]:
    """Serve on loopback in a thread. Returns the http server and its state, whose url is the
    address."""
    state = Server()
    http = Http(("127.0.0.1", port), type("Bound", (Handler,), {"server_state": state}))
    state.url = f"http://127.0.0.1:{http.server_address[1]}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    return http, state


@pytest.fixture(scope="module")
def wandb_server() -> Iterator[Server]:
    http, state = start()
    yield state
    http.shutdown()
    http.server_close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    _, served = start(parser.parse_args().port)
    print(served.url, flush=True)
    threading.Event().wait()
