/**
 * Numbered places at which the manager kills itself when SHADOWVM_FAULT names one, as in `promotion:3`: tests look at what
 * the next manager makes of it. The native parts have places of their own by the same variable (native/fault_point.h).
 */
const [place, step] = (process.env.SHADOWVM_FAULT ?? '').split(':');

export function faultPoint(at: 'promotion' | 'adoption' | 'resize', number: number): void {
  if (place === at && Number(step) === number) process.kill(process.pid, 'SIGKILL');
}
