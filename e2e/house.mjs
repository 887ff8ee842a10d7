// A broker in a folder of its own, for the scripts beside this one.
import { execFileSync, spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { request } from "node:https";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";

export class House {
  dir = mkdtempSync(join(tmpdir(), "broker-e2e-"));
  env = { PATH: process.env.PATH, HOME: process.env.HOME };
  children = [];

  constructor(broker) {
    this.broker = broker;
  }

  // start runs broker with args until the end.
  start(...args) {
    const child = spawn(this.broker, args, { cwd: this.dir, env: this.env, stdio: ["ignore", "ignore", "pipe"] });
    child.log = "";
    child.stderr.on("data", (d) => (child.log += d));
    this.children.push(child);
    return child;
  }

  // run runs broker with args and returns what it prints.
  run(...args) {
    return execFileSync(this.broker, args, { cwd: this.dir, env: this.env, encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
  }

  // serve starts the broker with this configuration, whose listen is added.
  async serve(config) {
    this.addr = `127.0.0.1:${await freePort()}`;
    writeFileSync(join(this.dir, "broker.yaml"), `listen: ${this.addr}\n${config}`);
    const child = this.start("serve");
    await this.until("the broker is up", () => existsSync(join(this.dir, "data/broker.sock")));
    return child;
  }

  async until(what, is) {
    for (const end = Date.now() + 30_000; !(await is()); ) {
      if (Date.now() > end) throw new Error(`it never happens that ${what}`);
      await new Promise((r) => setTimeout(r, 20));
    }
  }

  // over ends everything; error is why, if something failed.
  async over(error) {
    if (error) {
      console.error(error);
      for (const c of this.children) console.error(c.log);
    }
    for (const c of this.children) c.kill("SIGTERM");
    await Promise.all(this.children.map((c) => c.exitCode ?? new Promise((r) => c.on("exit", r))));
    rmSync(this.dir, { recursive: true });
  }
}

export async function freePort() {
  const s = createServer();
  await new Promise((r) => s.listen(0, "127.0.0.1", r));
  const { port } = s.address();
  await new Promise((r) => s.close(r));
  return port;
}

// certified is a fetch with a client certificate: node's own has no place for one.
export function certified(identity) {
  return (url, init = {}) =>
    new Promise((resolve, reject) => {
      const options = { method: init.method ?? "GET", headers: Object.fromEntries(new Headers(init.headers)), ca: identity, cert: identity, key: identity };
      const req = request(url, options, (res) => {
        const body = [202, 204, 304].includes(res.statusCode) ? (res.resume(), null) : Readable.toWeb(res);
        const headers = Object.entries(res.headers).flatMap(([name, value]) => [value].flat().map((one) => [name, one]));
        resolve(new Response(body, { status: res.statusCode, headers }));
      });
      req.on("error", reject);
      init.signal?.addEventListener("abort", () => req.destroy(init.signal.reason));
      req.end(init.body);
    });
}
