/** A guest in a bare QEMU, without ShadowVM's driver: for tests of the image and of what runs inside it. */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Image } from '../src/image/store.js';

const POLL_MS = 20;

export class GuestVm {
  /** Every line that came over the heartbeat port, in order. */
  readonly lines: string[] = [];
  /** Set when QEMU has ended. */
  exitCode: number | null = null;
  readonly #folder = mkdtempSync(join(tmpdir(), 'shadowvm-guest-'));
  readonly #startedMs = performance.now();
  #process: ChildProcess | undefined;
  #server: Server | undefined;
  #host: Socket | undefined;

  static async start(image: Image): Promise<GuestVm> {
    const vm = new GuestVm();
    // QEMU connects to us and comes back by itself, so that a test can hang up and be a host again.
    vm.#server = createServer((socket) => vm.#listen(socket));
    await new Promise<void>((resolve) => vm.#server!.listen(join(vm.#folder, 'heartbeat'), resolve));
    vm.#process = spawn('qemu-system-x86_64', vm.#arguments(image), { stdio: ['pipe', 'ignore', 'inherit'] });
    vm.#process.on('exit', (code) => {
      vm.exitCode = code ?? -1;
    });
    return vm;
  }

  #arguments(image: Image): string[] {
    const file = (name: string) => join(this.#folder, name);
    const mhz = /cpu MHz\s*: ([\d.]+)/.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1] ?? '2000';
    const kernelArguments = [
      'console=ttyS0 quiet pci=off panic=-1 reboot=t mitigations=off cryptomgr.notests',
      // Without it the kernel measures the TSC itself, which fails at random under emulation and hangs the boot.
      `tsc_early_khz=${Math.round(Number(mhz) * 1000)}`,
      'shadowvm.host=tester shadowvm.ip=10.0.2.15/24 shadowvm.gw=10.0.2.2',
    ];
    return [
      ...['-M', 'microvm,acpi=on,memory-backend=ram0', '-accel', 'tcg,thread=multi', '-m', '256'],
      // QEMU 7.2's cmpxchg16b spoils EFLAGS: Debian 13's kernel dies of it within seconds of load.
      ...['-cpu', 'max,cx16=off'],
      ...['-object', 'memory-backend-memfd,id=ram0,size=256M,share=on', '-nodefaults', '-no-user-config'],
      ...['-display', 'none', '-no-reboot'],
      ...['-chardev', `socket,id=console,path=${file('console')},server=on,wait=off,logfile=${file('log')}`],
      ...['-serial', 'chardev:console', '-kernel', image.kernelPath, '-initrd', image.initrdPath],
      ...['-append', kernelArguments.join(' ')],
      ...['-netdev', 'user,id=net0', '-device', 'virtio-net-device,netdev=net0', '-device', 'virtio-serial-device'],
      ...['-chardev', `socket,id=heartbeat,path=${file('heartbeat')},reconnect=1`],
      ...['-device', 'virtserialport,chardev=heartbeat,name=org.shadowvm.heartbeat,nr=1'],
      ...['-device', 'virtio-balloon-device', '-device', 'virtio-rng-device'],
    ];
  }

  #listen(socket: Socket): void {
    this.#host = socket;
    let rest = '';
    socket.setEncoding('latin1').on('data', (text: string) => {
      const parts = (rest + text).split('\n');
      rest = parts.pop()!;
      this.lines.push(...parts);
    });
    socket.on('error', () => {});
  }

  get consolePath(): string {
    return join(this.#folder, 'console');
  }

  /** Everything that the guest wrote to its serial console. */
  get log(): string {
    return readFileSync(join(this.#folder, 'log'), 'latin1');
  }

  get beats(): string[] {
    return this.lines.filter((line) => line.startsWith('beat '));
  }

  /** What the application in the guest shows in the newest beat. */
  get app(): string {
    return this.beats.at(-1)?.split(' ').slice(5).join(' ') ?? '-';
  }

  say(text: string): void {
    this.#host!.write(text);
  }

  /** Ends the present connection; QEMU makes another within about a second. */
  hangUp(): void {
    this.#host!.destroy();
  }

  /** Runs a command in the guest; its exit status. */
  async exec(id: string, command: string, timeoutMs = 20_000): Promise<number> {
    this.say(`exec ${id} ${command}\n`);
    const line = await this.until(
      `exit ${id}`,
      () => this.lines.find((each) => each.startsWith(`exit ${id} `)),
      timeoutMs,
    );
    return Number(line.split(' ')[2]);
  }

  /** Waits for something true, and returns it. */
  async until<T>(what: string, look: () => T | undefined | null | false, timeoutMs = 20_000): Promise<T> {
    for (const deadline = performance.now() + timeoutMs; performance.now() < deadline; ) {
      const found = look();
      if (found) return found;
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
    throw new Error(`no ${what} within ${timeoutMs} ms; the console said: ${this.log.slice(-2000)}`);
  }

  /** Power-on → first beat, ms. */
  async booted(): Promise<number> {
    await this.until('heartbeat', () => this.beats.length > 0, 30_000);
    return performance.now() - this.#startedMs;
  }

  async end(): Promise<void> {
    if (this.exitCode === null) this.#process!.kill('SIGKILL');
    await this.until('end of QEMU', () => this.exitCode !== null);
    this.#host?.destroy();
    this.#server!.close();
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
