/**
 * Regenerates `src/gen` from the protos of this repository, or with `--check` fails when it is out of date.
 *
 * Needs the repository's virtual environment (`make setup`): it pins buf and Google's error details.
 */

import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const CLIENT = fileURLToPath(new URL("..", import.meta.url));
const REPOSITORY = resolve(CLIENT, "../..");
const VENV = resolve(REPOSITORY, process.env.VENV ?? ".venv");
const GENERATED = join(CLIENT, "src/gen");

/** Generates code for the protos below `root`, or for some files of it, into `out`. */
function generate(root: string, out: string, files: readonly string[] = []): void {
  const template = readFileSync(join(CLIENT, "buf.gen.yaml"), "utf8").replace("src/gen", out);
  const paths = files.flatMap((file) => ["--path", join(root, file)]);
  execFileSync(join(VENV, "bin/buf"), ["generate", root, "--template", template, ...paths], {
    cwd: CLIENT,
    stdio: "inherit",
  });
}

/** Folder that holds `google/rpc/*.proto`: the site-packages of the virtual environment. */
function googleProtos(): string {
  const program = "import google.rpc as rpc; print(next(iter(rpc.__path__)))";
  const rpc = execFileSync(join(VENV, "bin/python"), ["-c", program], { encoding: "utf8" }).trim();
  return resolve(rpc, "../..");
}

function generateAll(out: string): void {
  rmSync(out, { recursive: true, force: true });
  generate(join(REPOSITORY, "protos"), out);
  generate(googleProtos(), out, ["google/rpc/error_details.proto"]);
}

/** Files below `folder` and their text. */
function contents(folder: string): Map<string, string> {
  const entries = existsSync(folder) ? readdirSync(folder, { recursive: true, withFileTypes: true }) : [];
  const files = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
  return new Map(files.map((file) => [relative(folder, file), readFileSync(file, "utf8")]));
}

/** Names of generated files that are missing, left over or different. */
function outdated(): string[] {
  const fresh = mkdtempSync(join(tmpdir(), "aimass-gen-"));
  try {
    generateAll(fresh);
    const [wanted, got] = [contents(fresh), contents(GENERATED)];
    const names = [...new Set([...wanted.keys(), ...got.keys()])].sort();
    return names.filter((name) => wanted.get(name) !== got.get(name));
  } finally {
    rmSync(fresh, { recursive: true, force: true });
  }
}

if (process.argv.includes("--check")) {
  const names = outdated();
  if (names.length > 0) {
    console.error(`src/gen is out of date; run \`npm run generate\`:\n  ${names.join("\n  ")}`);
    process.exitCode = 1;
  }
} else {
  generateAll(GENERATED);
}
