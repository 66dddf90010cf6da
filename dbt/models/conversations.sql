{# Written by `./dev docs --write` from imbrace_lake/query/views.py. #}
WITH counted AS (
    SELECT organization_id, conversation_id, count(CASE WHEN NOT is_deleted THEN 1 END) AS messages,
           count(CASE WHEN is_deleted THEN 1 END) AS deleted_messages,
           count(CASE WHEN NOT is_deleted AND sender_role = 'contact' THEN 1 END) AS contact_messages,
           count(CASE WHEN NOT is_deleted AND sender_role = 'user' THEN 1 END) AS user_messages,
           count(CASE WHEN NOT is_deleted AND sender_role = 'bot' AND NOT is_machine THEN 1 END) AS bot_messages,
           count(CASE WHEN NOT is_deleted AND is_machine THEN 1 END) AS machine_messages,
           count(CASE WHEN NOT is_deleted AND sender_role NOT IN ('contact', 'user', 'bot') THEN 1 END) AS unknown_messages,
           min(CASE WHEN NOT is_deleted THEN created_at END) AS first_message_at,
           max(CASE WHEN NOT is_deleted THEN created_at END) AS last_message_at
    FROM {{ ref('messages') }} GROUP BY organization_id, conversation_id
),
answered AS (
    SELECT organization_id, conversation_id, count(*) AS episodes,
           count(first_contact_at) AS contact_episodes, count(first_response_ms) AS answered_episodes,
           max(CASE WHEN contact_rank = 1 THEN first_response_ms END) AS first_response_ms,
           max(first_response_ms) AS longest_first_response_ms,
           max_by(closed_by, episode) AS last_role
    FROM (
        SELECT e.*, row_number() OVER (
                   PARTITION BY organization_id, conversation_id
                   ORDER BY CASE WHEN first_contact_at IS NULL THEN 1 ELSE 0 END, episode
               ) AS contact_rank
        FROM {{ ref('episodes') }} AS e
    ) AS r
    GROUP BY organization_id, conversation_id
),
verdicts AS (
    SELECT c.*, row_number() OVER (
               PARTITION BY organization_id, conversation_id ORDER BY finished_at DESC NULLS LAST, run_id DESC
           ) AS newest
    FROM {{ source('lake', 'conversations') }} AS c WHERE coalesce(proof_method, '') <> 'window'
)
SELECT coalesce(m.organization_id, v.organization_id) AS organization_id,
       coalesce(m.conversation_id, v.conversation_id) AS conversation_id,
       coalesce(m.messages, 0) AS messages, coalesce(m.deleted_messages, 0) AS deleted_messages, coalesce(m.contact_messages, 0) AS contact_messages, coalesce(m.user_messages, 0) AS user_messages, coalesce(m.bot_messages, 0) AS bot_messages, coalesce(m.machine_messages, 0) AS machine_messages, coalesce(m.unknown_messages, 0) AS unknown_messages,
       m.first_message_at AS first_message_at, m.last_message_at AS last_message_at, e.last_role,
       CAST(coalesce(e.last_role = 'contact', false) AS BOOLEAN) AS is_waiting,
       coalesce(e.episodes, 0) AS episodes, coalesce(e.contact_episodes, 0) AS contact_episodes, coalesce(e.answered_episodes, 0) AS answered_episodes, e.first_response_ms, e.longest_first_response_ms,
       v.status, v.proof_method, v.is_dead_letter, v.reason, v.server_count,
       v.finished_at AS verified_at
FROM counted AS m
FULL JOIN (SELECT * FROM verdicts WHERE newest = 1) AS v
  ON v.organization_id = m.organization_id AND v.conversation_id = m.conversation_id
LEFT JOIN answered AS e
  ON e.organization_id = m.organization_id AND e.conversation_id = m.conversation_id
