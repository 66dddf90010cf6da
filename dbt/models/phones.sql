{# Written by `./dev docs --write` from imbrace_lake/query/views.py. #}
SELECT organization_id, phone_hash, phone_masked, phone, status, reason, conversation_ids,
       resolved_at, run_id
FROM (
    SELECT p.*, row_number() OVER (
               PARTITION BY organization_id, phone_hash
               ORDER BY CASE WHEN status = 'error' THEN 1 ELSE 0 END,
                        resolved_at DESC NULLS LAST, run_id DESC, position
           ) AS newest
    FROM {{ source('lake', 'phones') }} AS p WHERE status <> 'duplicate' AND phone_hash IS NOT NULL
) AS t
WHERE newest = 1
