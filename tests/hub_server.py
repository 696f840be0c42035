"""A small Hub that speaks over HTTP what huggingface_hub asks of one; it keeps everything in memory.

    with HubServer() as hub:
        subprocess.run(..., env=os.environ | hub.env)

`hub.faults` are given to the next requests that they fit; `hub.log` lists all requests.
"""

import hashlib
import json
import re
import socket
import time
from base64 import b64decode
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from urllib.parse import parse_qs, unquote, urlparse

PAGE = b"<!DOCTYPE html><html><head><title>Login</title></head><body>Log in first.</body></html>"
TOKENS = {"hf_writer": ("you", True), "hf_reader": ("reader", False), "hf_other": ("other", True)}
LARGE = 4096  # bytes; from here on a file goes by the protocol for large ones


@dataclass
class Repository:
    """Commits by their id, each a tree of path to sha256; and names for some of them."""

    private: bool
    commits: dict[str, dict[str, str]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[str, str] = field(default_factory=dict)

    def add(self, tree: dict[str, str], message: str) -> str:
        """Keep a tree as a commit and give its id."""
        oid = hashlib.sha1(f"{len(self.commits)}{message}{tree}".encode()).hexdigest()
        self.commits[oid] = tree
        self.messages.append(message)
        return oid

    def find(self, revision: str) -> str | None:
        """Give the commit that a branch, tag, pull request or id means."""
        names = self.branches | self.tags | self.pull_requests
        return names.get(revision, revision if revision in self.commits else None)


@dataclass
class Fault:
    """What goes wrong, with which requests, how many times: a status, `cut`, `html`, or seconds of silence.

    `html` is the login page that a proxy sends with status 200 in place of any answer.
    """

    pattern: str  # of "METHOD /path"
    what: int | float | str
    times: int = 1


class HubServer:
    """The server; a context in which it runs."""

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}  # by sha256
        self.faults: list[Fault] = []
        self.log: list[str] = []
        self.lock = Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def env(self, home: Path, token: str = "hf_writer") -> dict[str, str]:
        """Give the environment variables of a process that is to know this Hub alone."""
        names = {"HF_ENDPOINT": self.url, "HF_TOKEN": token, "HF_HOME": str(home)}
        return names | {
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def keep(self, content: bytes) -> str:
        """Keep a file and give its sha256."""
        sha = hashlib.sha256(content).hexdigest()
        self.blobs[sha] = content
        return sha

    def read(self, repo_id: str, path: str, revision: str = "main", repo_type: str = "model") -> bytes:
        """Give a file of a repository."""
        repository = self.repositories[repo_type, repo_id]
        return self.blobs[repository.commits[repository.find(revision)][path]]

    def list(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> list[str]:
        """Give the names of the files of a repository."""
        repository = self.repositories[repo_type, repo_id]
        return sorted(repository.commits[repository.find(revision)])

    def take_fault(self, request: str) -> Fault | None:
        """Give the fault that is due for a request."""
        with self.lock:
            self.log.append(request)
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None


class Refusal(Exception):
    """An answer that is none."""

    def __init__(self, status: int, code: str, message: str):
        self.status, self.code, self.message = status, code, message


class Handler(BaseHTTPRequestHandler):
    """Answers one request after the other of a connection."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Say nothing: `HubServer.log` has it."""

    def answer(self):
        """Answer, or do what the fault says."""
        self.hub: HubServer = self.server.hub
        self.path, self.query = unquote(urlparse(self.path).path), parse_qs(urlparse(self.path).query)
        fault = self.hub.take_fault(f"{self.command} {self.path}")
        if fault and fault.what == "cut":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if fault and isinstance(fault.what, float):
            time.sleep(fault.what)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.user, self.can_write = TOKENS.get(token, (None, False))
        if fault and fault.what == "html":
            headers = {"Content-Type": "text/html", "X-Repo-Commit": "0" * 40, "ETag": '"page"'}
            return self.send(PAGE, headers=headers)
        try:
            if fault and isinstance(fault.what, int):
                raise Refusal(fault.what, "Fault", "a fault of the test")
            if token and not self.user:
                raise Refusal(401, "InvalidToken", "Invalid credentials")
            for method, pattern, reply in ROUTES:
                if method == self.command and (match := re.fullmatch(pattern, self.path)):
                    with self.hub.lock:
                        return reply(self, **match.groupdict())
            raise Refusal(404, "NoRoute", f"{self.command} {self.path} is not spoken here")
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self.send({"error": refusal.message}, refusal.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def send(self, content, status: int = 200, headers: dict[str, str] | None = None):
        """Send JSON or bytes."""
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def find(self, kind: str, repo: str, must_write: bool = False) -> Repository:
        """Give the repository, if this user may see it, or write to it."""
        repository = self.hub.repositories.get((kind, repo))
        if repository is None or (repository.private and repo.split("/")[0] != self.user):
            raise Refusal(404 if self.user else 401, "RepoNotFound", "Repository not found")
        if must_write and not (self.can_write and repo.split("/")[0] == self.user):
            raise Refusal(403 if self.user else 401, "Forbidden", "You have no right to write there")
        return repository

    def resolve(self, repository: Repository, revision: str) -> str:
        """Give the commit of a revision."""
        if (oid := repository.find(revision)) is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid

    def whoami(self):
        if not self.user:
            raise Refusal(401, "InvalidToken", "Invalid credentials")
        self.send({"type": "user", "name": self.user, "orgs": [], "auth": {"type": "access_token"}})

    def create(self):
        asked = json.loads(self.body)
        owner = asked.get("organization") or self.user
        if not self.user:
            raise Refusal(401, "InvalidToken", "Invalid credentials")
        if not self.can_write or owner != self.user:
            raise Refusal(403, "Forbidden", f'You don\'t have the rights to create a model under "{owner}"')
        key = (asked.get("type") or "model", f"{owner}/{asked['name']}")
        place = "" if key[0] == "model" else f"{key[0]}s/"
        url = {"url": f"{self.hub.url}/{place}{key[1]}", "name": key[1]}
        if key in self.hub.repositories:
            return self.send({"error": "You already created this model repo"} | url, 409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        repository = self.hub.repositories[key] = Repository(private)
        tree = {".gitattributes": self.hub.keep(b"*.safetensors filter=lfs\n")}
        repository.branches["main"] = repository.add(tree, "initial commit")
        self.send(url)

    def validate(self):
        content = json.loads(self.body)["content"]
        errors = [] if content.startswith("---\n") else [{"message": "it has no metadata"}]
        self.send({"errors": errors, "warnings": []}, 400 if errors else 200)

    def info(self, kind, repo, revision="main"):
        repository = self.find(kind, repo)
        oid = self.resolve(repository, revision)
        siblings = [{"rfilename": name} for name in repository.commits[oid]]
        told = {"id": repo, "sha": oid, "private": repository.private, "tags": [], "siblings": siblings}
        readme = self.hub.blobs.get(repository.commits[oid].get("README.md"), b"").decode()
        task = re.search(r"^pipeline_tag: (.+)$", readme, re.MULTILINE)
        self.send(told | ({"pipeline_tag": task[1]} if task else {}))

    def refs(self, kind, repo):
        repository = self.find(kind, repo)
        kinds = {"branches": "refs/heads/", "tags": "refs/tags/", "pull_requests": ""}
        branches, tags, pull_requests = (
            [
                {"name": name, "ref": prefix + name, "targetCommit": oid}
                for name, oid in getattr(repository, noun).items()
            ]
            for noun, prefix in kinds.items()
        )
        self.send({"branches": branches, "tags": tags, "pullRequests": pull_requests, "converts": []})

    def branch(self, kind, repo, name):
        repository = self.find(kind, repo, must_write=True)
        if name in repository.branches:
            raise Refusal(409, "Conflict", "Reference already exists")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        repository.branches[name] = self.resolve(repository, start)
        self.send({})

    def tag(self, kind, repo, revision):
        repository = self.find(kind, repo, must_write=True)
        repository.tags[json.loads(self.body)["tag"]] = self.resolve(repository, revision)
        self.send({})

    def tree(self, kind, repo, revision, path):
        repository, path = self.find(kind, repo), f"{path}/" if path else ""
        oid, entries = self.resolve(repository, revision), {}
        below = {name: sha for name, sha in repository.commits[oid].items() if name.startswith(path)}
        if path and not below:
            raise Refusal(404, "EntryNotFound", f"{path} does not exist")
        for name, sha in below.items():
            rest = name.removeprefix(path).split("/")
            folder = path + rest[0]
            if len(rest) > 1 and self.query.get("recursive", ["false"])[0].lower() == "false":
                entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": oid}
            else:
                size = len(self.hub.blobs[sha])
                entries[name] = {"type": "file", "path": name, "size": size, "oid": sha[:40]}
                if size >= LARGE:
                    entries[name]["lfs"] = {"oid": sha, "size": size, "pointerSize": 134}
        self.send(list(entries.values()))

    def paths_info(self, kind, repo, revision):
        repository = self.find(kind, repo)
        commit = repository.commits[self.resolve(repository, revision)]
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode())["paths"]
        found = []
        for path in paths:
            if path in commit:
                size = len(self.hub.blobs[commit[path]])
                found.append({"type": "file", "path": path, "size": size, "oid": commit[path][:40]})
            elif any(name.startswith(f"{path}/") for name in commit):
                found.append({"type": "directory", "path": path, "size": 0, "oid": "0" * 40})
        self.send(found)

    def preupload(self, kind, repo, revision):
        repository = self.find(kind, repo, must_write=True)
        tree = repository.commits[self.resolve(repository, revision)]
        files = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if file["size"] >= LARGE else "regular"
            sha, oid = tree.get(file["path"]), None
            if sha:
                blob = self.hub.blobs[sha]
                oid = sha if mode == "lfs" else hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.send({"files": files})

    def batch(self, kind, repo):
        self.find(kind or "model", repo, must_write=True)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            reply = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.blobs:
                upload = {"href": f"{self.hub.url}/large/{asked['oid']}"}
                reply["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/verify"}}
            objects.append(reply)
        self.send({"transfer": "basic", "objects": objects})

    def put_large(self, sha):
        if self.hub.keep(self.body) != sha:
            del self.hub.blobs[hashlib.sha256(self.body).hexdigest()]
            raise Refusal(400, "BadDigest", "the content is not what was announced")
        self.send(b"")

    def verify(self):
        asked = json.loads(self.body)
        if len(self.hub.blobs.get(asked["oid"], b"")) != asked["size"]:
            raise Refusal(400, "NotThere", "the large file did not arrive")
        self.send({})

    def commit(self, kind, repo, revision):
        repository = self.find(kind, repo, must_write=True)
        parent = self.resolve(repository, revision)
        tree, message = dict(repository.commits[parent]), ""
        for line in self.body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "header":
                message = value["summary"]
                if value.get("parentCommit", parent) != parent:
                    raise Refusal(412, "Conflict", "The branch has moved on")
            elif key == "file":
                tree[value["path"]] = self.hub.keep(b64decode(value["content"]))
            elif key == "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    raise Refusal(400, "NotThere", f"{value['path']} was not uploaded")
                tree[value["path"]] = value["oid"]
            elif key == "deletedFile":
                del tree[value["path"]]
            else:
                raise Refusal(400, "NoRoute", f"{key} is not spoken here")
        oid, url = repository.add(tree, message), f"{self.hub.url}/{repo}"
        if "create_pr" in self.query:
            name = f"refs/pr/{len(repository.pull_requests) + 1}"
            repository.pull_requests[name] = oid
        else:
            name = revision
            repository.branches[revision] = oid
        number = name.split("/")[-1]
        told = {"commitUrl": f"{url}/commit/{oid}", "pullRequestUrl": f"{url}/discussions/{number}"}
        self.send({"success": True, "commitOid": oid} | told)

    def file(self, kind, repo, revision, path):
        repository = self.find("dataset" if kind else "model", repo)
        oid = self.resolve(repository, revision)
        sha = repository.commits[oid].get(path)
        if sha is None:
            raise Refusal(404, "EntryNotFound", f"{path} does not exist")
        content, headers = self.hub.blobs[sha], {"X-Repo-Commit": oid, "ETag": f'"{sha}"'}
        if start := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(start[1]), int(start[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return self.send(content[first : last + 1], 206, headers)
        self.send(content, headers=headers)


REPO = r"/api/(?P<kind>model|dataset|space)s/(?P<repo>[^/]+/[^/]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("GET", REPO, Handler.info),
    ("GET", REPO + r"/revision/(?P<revision>.+)", Handler.info),
    ("GET", REPO + "/refs", Handler.refs),
    ("POST", REPO + r"/branch/(?P<name>.+)", Handler.branch),
    ("POST", REPO + r"/tag/(?P<revision>.+)", Handler.tag),
    ("GET", REPO + r"/tree/(?P<revision>refs/pr/\d+|[^/]+)(?:/(?P<path>.+))?", Handler.tree),
    ("POST", REPO + r"/paths-info/(?P<revision>.+)", Handler.paths_info),
    ("POST", REPO + r"/preupload/(?P<revision>.+)", Handler.preupload),
    ("POST", REPO + r"/commit/(?P<revision>.+)", Handler.commit),
    (
        "POST",
        r"/(?:(?P<kind>dataset|space)s/)?(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch",
        Handler.batch,
    ),
    ("PUT", r"/large/(?P<sha>\w+)", Handler.put_large),
    ("POST", "/verify", Handler.verify),
]
for _method in ("GET", "HEAD"):
    ROUTES.append(
        (
            _method,
            r"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>refs/pr/\d+|[^/]+)/(?P<path>.+)",
            Handler.file,
        )
    )
