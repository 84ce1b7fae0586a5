/**
 * The one error class of ShadowVM. Every failure that can reach a user is one of these codes; `code` is stable and part
 * of the API, the sentence is not. A message always says what was attempted, on what, why it failed and what to do.
 */
export const ERROR_STATUS = {
  // What the caller asked for is malformed. (HTTP 400, CLI exit 2 where the command line itself is wrong, else 1.)
  INVALID_ARGUMENT: 400,
  // What the caller named does not exist.
  VM_NOT_FOUND: 404,
  SHADOW_NOT_FOUND: 404,
  IMAGE_NOT_FOUND: 404,
  NETWORK_NOT_FOUND: 404,
  SNAPSHOT_NOT_FOUND: 404,
  EPOCH_NOT_FOUND: 404,
  DISK_NOT_FOUND: 404,
  NOT_FOUND: 404,
  // The request clashes with the state things are in.
  VM_EXISTS: 409,
  VM_NOT_RUNNING: 409,
  VM_BUSY: 409,
  SHADOW_EXISTS: 409,
  SHADOW_NOT_READY: 409,
  PROMOTION_IN_PROGRESS: 409,
  // Somebody took back what was asked for before it was done.
  CANCELLED: 409,
  IMAGE_IN_USE: 409,
  DISK_IN_USE: 409,
  STATE_LOCKED: 409,
  NETWORK_CONFLICT: 409,
  NETWORK_EXISTS: 409,
  NETWORK_IN_USE: 409,
  QUEUE_FULL: 429,
  // The host can not do it.
  NOT_ROOT: 500,
  NO_SPACE: 507,
  PACKAGE_MISSING: 500,
  QEMU_MISSING: 500,
  QEMU_TOO_OLD: 500,
  QEMU_START_FAILED: 500,
  QMP_TIMEOUT: 500,
  QMP_CLOSED: 500,
  QMP_ERROR: 500,
  GUEST_BOOT_TIMEOUT: 500,
  IMAGE_BUILD_FAILED: 500,
  NETWORK_FAILED: 500,
  CGROUP_FAILED: 500,
  TRACKING_UNAVAILABLE: 500,
  NATIVE_ERROR: 500,
  EPOCH_FAILED: 500,
  PROMOTION_FAILED: 500,
  STATE_CORRUPT: 500,
  // A shadow image or snapshot that can not be used.
  SNAPSHOT_FOREIGN: 400,
  SNAPSHOT_NEWER: 400,
  SNAPSHOT_CORRUPT: 500,
  SNAPSHOT_BASE_MISSING: 500,
  GOLDEN_FAILED: 500,
  GUEST_REFUSED: 500,
  // Between the CLI and the manager.
  DAEMON_NOT_RUNNING: 503,
  DAEMON_STOPPING: 503,
  INTERNAL: 500,
} as const;

export type ErrorCode = keyof typeof ERROR_STATUS;

export interface ErrorDetail {
  /** Infinitive phrase: "start the VM". */
  attempted: string;
  /** The thing it was done to: a VM, file, bridge or process. */
  subject?: string;
  /** Why it failed, with the underlying error's own words. */
  reason: string;
  /** What the user can do next. */
  remedy?: string;
  cause?: unknown;
}

export class ShadowVmError extends Error {
  override readonly name = 'ShadowVmError';
  readonly code: ErrorCode;
  readonly attempted: string;
  readonly subject: string | undefined;
  readonly reason: string;
  readonly remedy: string | undefined;

  constructor(code: ErrorCode, detail: ErrorDetail) {
    super(describe(detail), detail.cause === undefined ? undefined : { cause: detail.cause });
    this.code = code;
    this.attempted = detail.attempted;
    this.subject = detail.subject;
    this.reason = detail.reason;
    this.remedy = detail.remedy;
  }

  /** The stable JSON shape that the API sends and `--json` prints. */
  toJSON(): ErrorBody {
    return {
      code: this.code,
      message: this.message,
      attempted: this.attempted,
      subject: this.subject,
      reason: this.reason,
      remedy: this.remedy,
    };
  }
}

export interface ErrorBody {
  code: ErrorCode;
  message: string;
  attempted: string;
  subject?: string | undefined;
  reason: string;
  remedy?: string | undefined;
}

function describe(d: ErrorDetail): string {
  const what = d.subject === undefined ? d.attempted : `${d.attempted} (${d.subject})`;
  return `could not ${what}: ${d.reason}${d.remedy === undefined ? '' : `. ${d.remedy}`}`;
}

/** What anything that was thrown says. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Turns anything that was thrown into a ShadowVmError; unknown failures keep their words under INTERNAL. */
export function toShadowVmError(error: unknown, attempted = 'do what was asked'): ShadowVmError {
  if (error instanceof ShadowVmError) return error;
  const reason = messageOf(error);
  return new ShadowVmError('INTERNAL', {
    attempted,
    reason,
    remedy: 'This is a defect of ShadowVM; please report it with the log of the manager',
    cause: error,
  });
}
